"""Shapes and dtypes of the mLSTM's state."""

from __future__ import annotations

import torch
from torch import Tensor

State = tuple[Tensor, Tensor, Tensor]  # C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)

EMPTY = ((0,), (0,), (0,))  #: shapes of a state that is not there


def state_shapes(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[tuple[int, ...], ...]:
    """Shapes of C, n, m for operands of a whole call."""
    N = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    NH, DHQK, DHHV = q.shape[-2], q.shape[-1], v.shape[-1]
    return (N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH)


def state_dtype(q: Tensor) -> torch.dtype:
    """What C, n, m are kept in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32
