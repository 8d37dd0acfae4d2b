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
COUNTED = (
    "kernel", "grid", "block", "shared_bytes", "mma", "block_barriers", "global_bytes_read", "global_bytes_written",
    "sectors_per_request", "sector_factor", "bank_conflict_factor",
)  # fmt: skip


def launches(show: Any = print) -> list[dict[str, Any]]:
    """A record for every launch of one training call and one step, bfloat16, B = NH = 1."""
    found = []
    for DHQK, DHHV in MLSTM_DIMS:
        show(f"host executor: mlstm DHQK{DHQK} DHHV{DHHV}")
        found += [
            {"case": f"mlstm DHQK{DHQK} DHHV{DHHV}", **launch, "bytes_over_least": over_least(launch, DHQK, DHHV)}
            for launch in profiled(mlstm, DHQK, DHHV)
        ]
    for DH in SLSTM_DIMS:
        show(f"host executor: slstm DH{DH}")
        found += [{"case": f"slstm DH{DH}", **launch, "bytes_over_least": None} for launch in profiled(slstm, DH)]
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
    return [{name: rounded(launch[name]) for name in COUNTED if name in launch} for launch in done]


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


def slstm(DH: int) -> None:
    x = torch.randn(1, 16, 4, 1, DH, dtype=torch.bfloat16, requires_grad=True)
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
