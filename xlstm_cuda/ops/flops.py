"""Floating-point operations of the ops, for torch.utils.flop_counter: two for every multiply-add of a matrix product.

Counted are the products of the chunkwise mLSTM and of the recurrent sLSTM, once: the kernels' recomputation, the padding of a
last chunk and elementwise work are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import mlstm, slstm

CHUNK_LENGTH = 64  #: steps per chunk that are counted where no chunk_size is given, whatever the backend chooses

Shape = Sequence[int]


def _steps_and_pairs(S: int, chunk_size: int | None) -> tuple[int, int]:
    """S, and the pairs of steps in the same chunk. Sequences of cu_seqlens count as one, because their borders are data."""
    L = chunk_size or CHUNK_LENGTH
    return S, S // L * L * L + (S % L) ** 2


def _mlstm_sizes(q: Shape, v: Shape, chunk_size: int | None) -> tuple[int, int, int, int]:
    """Steps and pairs over all rows (B, NH), DHQK, DHHV."""
    B, S, NH, DHQK = q
    steps, pairs = _steps_and_pairs(S, chunk_size)
    return B * NH * steps, B * NH * pairs, DHQK, v[-1]


# Formulas are given the shapes in place of the tensors.


@register_flop_formula(torch.ops.xlstm_cuda.mlstm_forward)
def mlstm_forward_flops(*args: Any, out_shape: Any = None, **_: Any) -> int:
    """Within a chunk Q K^T and its product with V; with the state (C beside n) one product to read it and one to write it."""
    operands, options = mlstm.FORWARD.split(args)
    steps, pairs, DHQK, DHHV = _mlstm_sizes(operands.q, operands.v, options.chunk_size)
    return 2 * pairs * (DHQK + DHHV) + 2 * steps * 2 * DHQK * (DHHV + 1)


@register_flop_formula(torch.ops.xlstm_cuda.mlstm_backward)
def mlstm_backward_flops(*args: Any, out_shape: Any = None, **_: Any) -> int:
    """Within a chunk the scores, dH V^T, and one product each for dQ, dK, dV; C and dC take five, n and dn two to write."""
    _, operands, _, options = mlstm.BACKWARD.split(args)
    steps, pairs, DHQK, DHHV = _mlstm_sizes(operands.q, operands.v, options.chunk_size)
    return 2 * pairs * (3 * DHQK + 2 * DHHV) + 2 * steps * DHQK * (5 * DHHV + 2)


@register_flop_formula(torch.ops.xlstm_cuda.mlstm_step)
def mlstm_step_flops(*args: Any, out_shape: Any = None, **_unused: Any) -> int:
    """The state (C beside n) is written and read once."""
    token, _ = mlstm.STEP.split(args)
    B, NH, DHQK = token.q
    return int(2 * B * NH * 2 * DHQK * (token.v[-1] + 1))


@register_flop_formula(torch.ops.xlstm_cuda.slstm_forward)
def slstm_forward_flops(*args: Any, out_shape: Any = None, **_: Any) -> int:
    """R h for four gates at every step."""
    operands, _ = slstm.FORWARD.split(args)
    B, S, gates, NH, DH = operands.x
    return int(2 * B * S * gates * NH * DH * DH)


@register_flop_formula(torch.ops.xlstm_cuda.slstm_backward)
def slstm_backward_flops(*args: Any, out_shape: Any = None, **_: Any) -> int:
    """R^T dx for dh, and dx h^T for dR, at every step."""
    B, S, gates, NH, DH = out_shape[0]
    return int(2 * 2 * B * S * gates * NH * DH * DH)
