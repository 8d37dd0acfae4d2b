"""How near a call is to what the machine could do: the work of a case over the machine's own best rates.

Work: the floating-point operations of xlstm_cuda/ops/flops.py, which count the mLSTM in chunks of 64 whatever a contender does,
and the bytes of every operand and result once. Rates: a large matmul in the case's dtype and a copy that no cache holds, timed on
this machine. The roofline is the longer of the two times; its share is small where a recurrence waits for its own steps.
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
    """Work of a case, counted on our contender, and the machine's rates; empty for a case without operands to count."""
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


def share(found: dict[str, float], milliseconds: float) -> float:
    """The roofline's part of a measured time."""
    return 1e3 * max(found["flops"] / found["flops/s"], found["bytes"] / found["bytes/s"]) / milliseconds
