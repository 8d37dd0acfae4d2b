"""How near a call is to what the machine could do: the least work of a case over the machine's own best rates.

Work: the floating-point operations that the recurrence needs (xlstm_cuda/ops/flops.py, counted on our call), and the bytes of
every operand and result once. Rates: a large matmul in the case's dtype and a large copy, timed on this machine. The roofline is
the longer of the two times. Its share of a measured time is at most 1, and small where a recurrence waits for its own steps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from .contenders import Prepared

MATRIX = {"cpu": 1024, "cuda": 8192}  #: rows and columns of the matmul
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}  #: bytes
TRIES = 5


@functools.cache
def rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations and bytes a second: the best of a few tries."""
    n = MATRIX[device]
    a = torch.randn(n, n, device=device).to(dtype)
    data = torch.zeros(COPIED[device] // 2, dtype=torch.uint8, device=device)
    copy = torch.empty_like(data)
    return {
        "flops/s": 2 * n**3 / best(lambda: a @ a, device),
        "bytes/s": 2 * data.numel() / best(lambda: copy.copy_(data), device),
    }


def best(call: Callable[[], object], device: str) -> float:
    taken = []
    for _ in range(TRIES + 1):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def of(prepared: Prepared, backward: bool, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Least work of a case, counted on our contender, and the machine's rates; empty for a case without operands to count."""
    leaves = prepared.leaves.values()
    if not leaves:
        return {}
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        result = prepared.forward()
        if backward:  # not autograd.grad, which the counter's hooks on modules do not take
            result.backward(torch.ones_like(result))
    for x in leaves:
        x.grad = None
    operands = sum(x.numel() * x.element_size() for x in leaves)
    results = result.numel() * result.element_size()
    # Backward reads operands, result and its gradient, and writes a gradient for every operand.
    moved = operands + results + (2 * operands + 2 * results if backward else 0)
    return {"flops": float(counter.get_total_flops()), "bytes": float(moved), **rates(device, dtype)}


def share(found: dict[str, float], milliseconds: float) -> float | None:
    """The roofline's part of a measured time."""
    if not found:
        return None
    return 1e3 * max(found["flops"] / found["flops/s"], found["bytes"] / found["bytes/s"]) / milliseconds
