"""What the host executor counts in one call of every kernel: bytes, sectors, bank conflicts, barriers, shared memory.

One tile per head dim has to fit every GPU from sm_80 on, so the launches run under the limits of sm_86 (99 KB a block).
"""

from __future__ import annotations

from typing import Any

import torch

from xlstm_cuda import functional, simt

MLSTM_DIMS = ((64, 64), (128, 128), (128, 256), (256, 512))  # DHQK, DHHV of the benchmarks
SLSTM_DIMS = (64, 128, 256)
S = 256
SLSTM_STEPS, SLSTM_ROWS = 16, 8  # a whole tile of rows
COUNTED = (
    "kernel", "grid", "block", "shared_bytes", "mma", "block_barriers", "global_bytes_read", "global_bytes_written",
    "sectors_per_request", "sector_factor", "bank_conflict_factor",
)  # fmt: skip


def launches(show: Any = print) -> list[dict[str, Any]]:
    """A record for every launch of one training call and one step, bfloat16, NH = 1; B = 1, for the sLSTM 8."""
    found = []
    for DHQK, DHHV in MLSTM_DIMS:
        show(f"host executor: mlstm DHQK{DHQK} DHHV{DHHV}")
        found += [
            {"case": f"mlstm DHQK{DHQK} DHHV{DHHV}", **launch, "bytes_over_least": over_least(launch, DHQK, DHHV)}
            for launch in profiled(mlstm, DHQK, DHHV)
        ]
    for DH in SLSTM_DIMS:
        show(f"host executor: slstm DH{DH}")
        short, long = (profiled(slstm, DH, steps) for steps in (SLSTM_STEPS, 2 * SLSTM_STEPS))
        found += [
            {"case": f"slstm DH{DH}", **launch, "bytes_over_least": slstm_over_least(launch, longer, DH)}
            for launch, longer in zip(short, long, strict=True)
        ]
    for launch in found:
        del launch["exchanged"]
    return found


def profiled(call: Any, *dims: int) -> list[dict[str, Any]]:
    """The counted figures of a call's launches; none where this build has no such kernels."""
    torch.manual_seed(0)
    try:
        with simt.options(sm=86), simt.profile() as done:
            call(*dims)
    except RuntimeError as error:
        if "no sLSTM kernels" not in str(error) and "sm_90" not in str(error):
            raise
        return []
    return [
        {name: rounded(launch[name]) for name in COUNTED if name in launch} | {"exchanged": exchanged(launch)} for launch in done
    ]


def exchanged(launch: dict[str, Any]) -> int:
    """Bytes that the blocks of a grid hand each other through L2: those of the files named so."""
    return sum(line["bytes"] for line in launch["lines"] if line["space"] == "global" and "/exchange.cuh" in line["where"])


def rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else list(value) if isinstance(value, tuple) else value


def mlstm(DHQK: int, DHHV: int) -> None:
    shapes = [(1, S, 1, DHQK), (1, S, 1, DHQK), (1, S, 1, DHHV), (1, S, 1), (1, S, 1)]
    tensors = [torch.randn(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes]
    h, last = functional.mlstm(*tensors, return_state=True, backend="simt")
    torch.autograd.grad(h, tensors, torch.ones_like(h))
    with torch.no_grad():
        q, k, v, i, f = (x[:, 0] for x in tensors)
        functional.mlstm_step(q, k, v, i, f, last, backend="simt")


def slstm(DH: int, steps: int) -> None:
    x = torch.randn(SLSTM_ROWS, steps, 4, 1, DH, dtype=torch.bfloat16, requires_grad=True)
    R = (torch.randn(4, 1, DH, DH) / DH**0.5).bfloat16().requires_grad_()
    h, last = functional.slstm(x, R, return_state=True, backend="simt")
    torch.autograd.grad(h, (x, R), torch.ones_like(h))
    with torch.no_grad():
        functional.slstm_step(x[:, 0], R, None, last, backend="simt")


def over_least(launch: dict[str, Any], DHQK: int, DHHV: int) -> float | None:
    """Bytes of a walk over the least: A, B once for every block of output columns, X in and O out, q or k for the row dots.

    The state is left out: it is read and written once per sequence, whatever S is.
    """
    sizes = {"h": (DHQK, DHHV), "dq": (DHHV, DHQK), "dk": (DHHV, DHQK), "dv": (DHQK, DHHV)}
    use = launch["kernel"].split("<")[0].rpartition("_")[2]
    if "walk" not in launch["kernel"] or use not in sizes:
        return None
    contracted, columns = sizes[use]
    blocks = 1
    for extent in launch["grid"]:
        blocks *= extent
    dots = 2 * columns * S if use in ("dq", "dk") else 0
    least = 2 * S * (2 * contracted * blocks + 2 * columns) + dots
    state = 4 * DHQK * DHHV if use in ("h", "dk") else 0
    return round((launch["global_bytes_read"] + launch["global_bytes_written"] - state) / least, 3)


def slstm_over_least(launch: dict[str, Any], longer: dict[str, Any], DH: int) -> float | None:
    """Bytes of a step over the least, from a launch of twice as many steps, which reads R and the states as often.

    Forward: x in; h, tails, c and n out. Backward: tails, c, n and dh in; dx out. What blocks hand each other is left out.
    """
    if not launch["kernel"].split("<")[0].endswith(("_forward", "_backward")):
        return None
    moved = [one["global_bytes_read"] + one["global_bytes_written"] - one["exchanged"] for one in (launch, longer)]
    least = SLSTM_ROWS * DH * (4 * 2 + 2 + 4 * 2 + 2 * 4)
    return round((moved[1] - moved[0]) / SLSTM_STEPS / least, 3)
