"""What a launch of the sLSTM kernels does: barriers, tensor cores, bytes, bank conflicts (profile), and spills (nvcc)."""

from __future__ import annotations

import pytest
import torch
from slstm_cases import make_case, run
from test_slstm_kernels import traced

from xlstm_cuda import functional, simt

STEPS = 32
HEADS = [(32, torch.bfloat16), (64, torch.float16), (96, torch.bfloat16), (128, torch.bfloat16), (32, torch.float32)]


def launches(DH: int, dtype: torch.dtype, S: int) -> dict[str, dict]:
    """Forward (training) and backward of one head and eight rows."""
    traced()
    case = make_case(8, S, 1, DH, state=False)
    with simt.profile() as found:
        run(case, "simt", dtype)
    return {launch["kernel"].split("<")[0].rsplit("_", 1)[1]: launch for launch in found}


@pytest.fixture(scope="module", params=HEADS, ids=lambda v: f"DH{v[0]}-{str(v[1])[6:]}")
def pair(request) -> tuple[int, torch.dtype, dict, dict]:
    """The same call over STEPS and over twice as many steps: what differs is what a step costs."""
    DH, dtype = request.param
    return DH, dtype, launches(DH, dtype, STEPS), launches(DH, dtype, 2 * STEPS)


def per_step(pair, name: str, key: str) -> float:
    return (pair[3][name][key] - pair[2][name][key]) / STEPS


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_one_barrier_per_step(name, pair):
    assert per_step(pair, name, "block_barriers") == 1


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_product_runs_on_tensor_cores_in_16_bits(name, pair):
    DH, dtype = pair[:2]
    expected = 0 if dtype == torch.float32 else 4 * DH * DH // (16 * 16)  # one m16n8k16 per 16 x 16 of R
    assert per_step(pair, name, "mma") == expected


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_step_moves_the_fewest_bytes(name, pair):
    """Forward: x in; h, tails, c and n out. Backward: tails, c and n, dh in; dx out. R does not count: it is read once."""
    DH, dtype = pair[:2]
    element, tail = dtype.itemsize, 4 if dtype == torch.float32 else 2
    least = 8 * DH * (4 * element + element + 4 * tail + 2 * 4)
    moved = per_step(pair, name, "global_bytes_read") + per_step(pair, name, "global_bytes_written")
    assert moved <= 1.10 * least, f"{moved / least:.3f} times the least"


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_R_is_read_once_per_launch(name, pair):
    DH, dtype, short, long = pair
    weights = 4 * DH * DH * dtype.itemsize
    for launch in (short[name], long[name]):
        lines = [line for line in launch["lines"] if line["space"] == "global" and "resident/product" in line["where"]]
        assert sum(line["bytes"] for line in lines) == weights


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_shared_memory_has_no_bank_conflicts(name, pair):
    launch = pair[3][name]
    wide = [line for line in launch["lines"] if line["space"] == "shared" and line["bytes"] >= 512 * line["requests"]]
    assert wide
    for line in wide:  # ldmatrix and 16-byte accesses
        assert line["wavefronts"] <= 1.05 * line["bytes"] / 128, line
    if pair[1] != torch.float32:  # its 16-byte reads of h and R are the same for several lanes: fewer bytes than wavefronts
        assert launch["bank_conflict_factor"] <= 1.05


def test_inference_saves_nothing():
    traced()
    case = make_case(8, STEPS, 1, 64, state=False).to(torch.bfloat16)
    with simt.profile() as found, torch.no_grad():
        functional.slstm(case.x, case.R, case.b, backend="simt")
    (launch,) = found
    states = 4 * 8 * 64 * 4
    assert launch["global_bytes_written"] == 8 * STEPS * 64 * 2 + states
