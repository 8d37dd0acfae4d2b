"""The blocks' causal depthwise convolution on the CPU: allocates and hands pointers to csrc/cpu/conv.h."""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import _C
from .launch import CPUCall
from .library import must_dispatch

_STEP = {torch.float32: _C.conv_step_cpu_float32, torch.float64: _C.conv_step_cpu_float64}
_FORWARD = {torch.float32: _C.conv_forward_cpu_float32, torch.float64: _C.conv_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.conv_backward_cpu_float32, torch.float64: _C.conv_backward_cpu_float64}


def usable(x: Tensor, *others: Tensor) -> bool:
    """Whether the functions below take these operands; compilers and modes need PyTorch's operators."""
    dtype = x.dtype
    if dtype not in _FORWARD or not x.is_cpu or must_dispatch(x, *others):
        return False
    for one in others:  # all() would take as long as the rest
        if one.dtype is not dtype or not one.is_cpu:
            return False
    return True


def step(x: Tensor, held: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One input x (B, D) after held (B, K or K-1, D), weight (D, 1, K), bias (D), all of one dtype -> y (B, D), window (B, K, D).

    The same bits as `forward` on the window; None is zeros before the first input.
    """
    (B, D), K, dtype = x.shape, weight.shape[-1], x.dtype
    call = CPUCall()
    address = call.address
    y, to_y = call.like(x)
    steps = K if held is None else held.shape[1]
    window, to_window = call.like(held if held is not None and steps == K else x.new_empty((B, K, D)))
    _STEP[dtype](
        B=B, D=D, K=K, held_steps=steps, x=address(x, dtype), held=address(held, dtype), w=address(weight, dtype),
        b=address(bias, dtype), window=to_window, y=to_y, threads=torch.get_num_threads(),
    )  # fmt: skip
    return y, window


def forward(x: Tensor, weight: Tensor, bias: Tensor, part: Tensor | None = None) -> Tensor:
    """x (B, S+K-1, D), weight (K, D), bias (D), all of one dtype -> y (B, S, D).

    part: int64 (B, S+K-1); a step sees only inputs of its own input's part.
    """
    B, padded, D = x.shape
    K = weight.shape[0]
    S = padded - K + 1
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = x.new_empty((B, S, D))
    call = CPUCall()
    _FORWARD[x.dtype](
        B=B, S=S, D=D, K=K, part=call.address(part, torch.int64),
        x=call.address(x, x.dtype), w=call.address(weight, x.dtype), b=call.address(bias, x.dtype),
        y=call.result(y), threads=torch.get_num_threads(),
    )  # fmt: skip
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, part: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight (K, D), dbias (D) from dy (B, S, D)."""
    B, padded, D = x.shape
    K = weight.shape[0]
    x, weight, dy = x.contiguous(), weight.contiguous(), dy.contiguous()
    dx, sums = torch.empty_like(x), x.new_empty((B * _C.conv_tiles(padded), K + 1, D))
    call = CPUCall()
    _BACKWARD[x.dtype](
        B=B, S=padded - K + 1, D=D, K=K, part=call.address(part, torch.int64),
        x=call.address(x, x.dtype), w=call.address(weight, x.dtype),
        dy=call.address(dy, x.dtype), dx=call.result(dx), sums=call.result(sums), threads=torch.get_num_threads(),
    )  # fmt: skip
    total = sums.sum(0)
    return dx, total[:K], total[K]
