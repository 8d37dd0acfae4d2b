"""The race detector and the memory profile of the host executor."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from simt_backends import run_primitive

from xlstm_cuda import native, simt

BUGS = Path(__file__).parent.parent / "csrc/simt/selftest/planted_bugs.cu"
RACES = re.findall(r"// BUG (\w+)", BUGS.read_text())
CLEAN = ["shuffles", "block_reductions", "shared_transpose", "named_barriers", "grid_barrier", "flags", "atomics", "cp_async_16"]
CLEAN += [
    "ldmatrix_product",
    "stmatrix_x4",
    "cluster",
    "mbarrier_ring",
    "store_async_ring",
    "bulk_load",
    "wgmma_shared",
    "wgmma_registers",
]
CLEAN += ["clean_flags", "clean_warp_arrive", "clean_exchange"]


@pytest.fixture(autouse=True)
def instrumented():
    try:
        native.simt("_trace")
    except ImportError as error:
        pytest.skip(str(error))


def run(name: str, n: int = 2, **options) -> None:
    with simt.options(races=True, **options):
        run_primitive("simt", name, np.zeros(8192, np.uint32), 8192, n=n, fill=0)


def lines(mark: str, name: str) -> set[int]:
    return {at for at, text in enumerate(BUGS.read_text().splitlines(), 1) if f"{mark} {name}" in text}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", RACES)
def test_race_is_reported_with_both_lines(name, seed):
    with pytest.raises(RuntimeError) as error:
        run(name, seed=seed)
    text = str(error.value)
    assert "missing fence.proxy.async" in text if name == "missing_proxy_fence" else "data race on" in text
    named = {int(line) for line in re.findall(r"planted_bugs\.cu:(\d+)", text)}
    assert named & lines("BUG", name) and named & lines("PARTNER", name), text


@pytest.mark.parametrize("order", simt.ORDERS)
@pytest.mark.parametrize("name", CLEAN)
def test_no_race_is_reported_in_a_correct_kernel(name, order):
    for seed in range(1, 4 if order == "random" else 2):
        run(name, n=64 if name == "bulk_load" else 3, order=order, seed=seed, landing="random" if order == "random" else "late")


def test_profile_counts_bank_conflicts():
    for stride, ways in ((1, 1), (2, 2), (32, 32), (33, 1)):
        with simt.profile() as launches:
            run_primitive("simt", "strided_shared", np.zeros(1, np.uint32), 32, n=stride)
        (launch,) = launches
        reads = [line for line in launch["lines"] if line["space"] == "shared" and not line["write"]]
        assert [line["wavefronts"] for line in reads] == [ways]


def test_profile_counts_sectors_and_bytes():
    for stride, sectors in ((1, 4), (2, 8), (8, 32), (16, 32)):
        with simt.profile() as launches:
            run_primitive("simt", "strided_global", np.zeros(1024, np.uint32), 64, n=stride)
        (launch,) = launches
        (read,) = (line for line in launch["lines"] if not line["write"])
        assert abs(read["sectors"] - sectors) <= 1  # the buffer need not start on a sector
        assert launch["global_bytes_read"] == launch["global_bytes_written"] == 128


def test_profile_takes_a_vector_access_as_one_request():
    with simt.profile() as launches:
        run_primitive("simt", "vector_global", np.zeros(128, np.uint32), 128)
    (launch,) = launches
    assert launch["global_bytes_read"] == launch["global_bytes_written"] == 512 and launch["global_requests"] == 2


@pytest.mark.parametrize(("row_bytes", "ways"), [(16, 1), (128, 8), (144, 1)])
def test_profile_counts_ldmatrix_conflicts(row_bytes, ways):
    with simt.profile() as launches:
        run_primitive("simt", "unpadded_ldmatrix", np.zeros(1, np.uint32), 32, n=row_bytes)
    (launch,) = launches
    assert launch["ldmatrix"] == 1
    (read,) = (line for line in launch["lines"] if line["space"] == "shared" and not line["write"])
    assert read["wavefronts"] == ways


def test_profile_lists_every_launch_in_order_and_only_those_inside():
    run_primitive("simt", "shuffles", np.zeros(32, np.uint32), 128)
    with simt.profile() as launches:
        run_primitive("simt", "shuffles", np.zeros(32, np.uint32), 128)
        run_primitive("simt", "mma_bf16", np.zeros(512, np.float32), 128)
    assert [(x["kernel"], x["grid"], x["block"], x["mma"]) for x in launches] == [
        ("shuffles", (1, 1, 1), (32, 1, 1), 0),
        ("mma_bf16", (1, 1, 1), (32, 1, 1), 1),
    ]
    assert {"block_barriers", "shared_bytes", "sectors_per_request", "bank_conflict_factor"} <= launches[0].keys()
