"""One token of the mLSTM (M1-M3): allocates and hands pointers to csrc/cpu."""

from __future__ import annotations

import torch
from torch import Tensor

from ...native import _C
from ..launch import CPUCall
from .options import Options
from .states import State

_STEP = {torch.float32: _C.mlstm_step_cpu_float32, torch.float64: _C.mlstm_step_cpu_float64}


def step(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    """M1-M3 for one token; q, k (B, NH, DHQK), v (B, NH, DHHV), i, f (B, NH). Returns h and new C, n, m."""
    C, n, m = state
    (B, NH, DHQK, DHHV), dtype, given = C.shape, C.dtype, v.dtype
    if given is not dtype:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if i.dtype is not dtype or f.dtype is not dtype:
        i, f = i.to(dtype), f.to(dtype)
    call = CPUCall()
    address, like = call.address, call.like
    (h, to_h), (C_last, to_C), (n_last, to_n), (m_last, to_m) = like(v), like(C), like(n), like(m)
    _STEP[dtype](
        shape=(B * NH, DHQK, DHHV), q=address(q, dtype), k=address(k, dtype), v=address(v, dtype),
        i=address(i, dtype), f=address(f, dtype), C=address(C, dtype), n=address(n, dtype), m=address(m, dtype),
        h=to_h, C_last=to_C, n_last=to_n, m_last=to_m, options=options, threads=torch.get_num_threads(),
    )  # fmt: skip
    return h if given is dtype else h.to(given), (C_last, n_last, m_last)
