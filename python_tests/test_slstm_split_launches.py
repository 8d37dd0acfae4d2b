"""What a launch of the cluster and grid kernels does: barriers, tensor cores, bytes, bank conflicts (profile)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from slstm_cases import make_case, run
from test_slstm_kernels import traced

from xlstm_cuda import simt
from xlstm_cuda.ops.slstm_kernels import forced_kernel

STEPS = 8
CASES = [("cluster", 96, torch.bfloat16), ("grid", 96, torch.bfloat16), ("grid", 48, torch.float32)]
UNITS = {torch.bfloat16: 32, torch.float32: 16}  # of a block


def launches(kernel: str, DH: int, dtype: torch.dtype, S: int) -> dict[str, dict]:
    """Forward (training) and backward of one head and eight rows."""
    traced()
    case = make_case(8, S, 1, DH, state=False)
    with simt.profile() as found, forced_kernel(kernel):
        run(case, "simt", dtype)
    return {launch["kernel"].rsplit("_", 1)[1]: launch for launch in found if "zero" not in launch["kernel"]}


@pytest.fixture(scope="module", params=CASES, ids=lambda v: f"{v[0]}-DH{v[1]}-{str(v[2])[6:]}")
def pair(request) -> tuple[str, int, torch.dtype, dict, dict]:
    """The same call over STEPS and over twice as many steps: what differs is what a step costs."""
    return (*request.param, launches(*request.param, STEPS), launches(*request.param, 2 * STEPS))


def per_step(pair, name: str, key: str) -> float:
    return (pair[4][name][key] - pair[3][name][key]) / STEPS


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_one_block_barrier_per_step(name, pair):
    launch = pair[4][name]
    assert launch["cooperative"] == (pair[0] == "grid") and launch["blocks"] == pair[1] // UNITS[pair[2]]
    assert per_step(pair, name, "block_barriers") == launch["blocks"]


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_one_cluster_barrier_per_step(name, pair):
    """The exchange completes one phase of one mbarrier per block and step, and nothing else waits."""
    if pair[0] == "cluster":
        assert per_step(pair, name, "mbarrier_phases") == pair[4][name]["blocks"]


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_product_runs_on_tensor_cores_in_16_bits(name, pair):
    DH, dtype = pair[1:3]
    expected = 0 if dtype == torch.float32 else 4 * DH * DH // (16 * 16)  # one m16n8k16 per 16 x 16 of R
    assert per_step(pair, name, "mma") == expected


def traffic(launch: dict, file: str, **where: bool) -> int:
    lines = [line for line in launch["lines"] if line["space"] == "global" and file in line["where"]]
    return sum(line["bytes"] for line in lines if all(line[key] == value for key, value in where.items()))


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_step_moves_the_fewest_bytes(name, pair):
    """x in; h, tails, c and n out; tails, c and n, dh in; dx out. What blocks hand each other through L2 is counted apart."""
    kernel, DH, dtype = pair[:3]
    element, tail = dtype.itemsize, 4 if dtype == torch.float32 else 2
    least = 8 * DH * (4 * element + element + 4 * tail + 2 * 4)
    exchanged = (traffic(pair[4][name], "/exchange.cuh") - traffic(pair[3][name], "/exchange.cuh")) / STEPS
    moved = per_step(pair, name, "global_bytes_read") + per_step(pair, name, "global_bytes_written") - exchanged
    assert moved <= 1.10 * least, f"{moved / least:.3f} times the least"
    blocks, words = pair[4][name]["blocks"], DH * 8
    handed = {"cluster": 0, "grid": blocks * words * (element if name == "forward" else 8)}[kernel]
    counters = 64 * blocks * 32 if kernel == "grid" else 0  # polls, however often they had to look
    assert handed <= exchanged <= 1.10 * handed + counters


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_R_is_read_once_per_launch(name, pair):
    DH, dtype, short, long = pair[1:]
    for launch in (short[name], long[name]):
        bias = 4 * DH * 4 if name == "forward" else 0
        assert traffic(launch, "split/product", write=False) == 4 * DH * DH * dtype.itemsize + bias


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_shared_memory_has_no_bank_conflicts(name, pair):
    launch = pair[4][name]
    wide = [line for line in launch["lines"] if line["space"] == "shared" and line["bytes"] >= 512 * line["requests"]]
    assert wide
    for line in wide:  # 16-byte accesses of whole warps
        assert line["wavefronts"] <= 1.05 * line["bytes"] / 128, line
    if pair[2] != torch.float32:  # its reads of h and dg are the same for several lanes: fewer bytes than wavefronts
        assert launch["bank_conflict_factor"] <= 1.05


def test_a_launch_of_many_threads_gives_their_stacks_back():
    """Two memory maps a stack: a process that kept 12,500 of them for each module would come near Linux's 65530 and crash."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc on this system")
    before = len(maps.read_text().splitlines())
    with simt.options(sm=86), forced_kernel("grid"):
        run(make_case(1, 1, 1, 776), "simt", torch.bfloat16)
    assert len(maps.read_text().splitlines()) - before < 10_000
