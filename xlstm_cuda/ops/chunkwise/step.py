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
    dtype = state[0].dtype
    operands = [x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous() for x in (q, k, v, i, f, *state)]
    results = [torch.empty_like(x) for x in (operands[2], *operands[5:])]
    B, NH, DHQK = q.shape
    call = CPUCall()
    _STEP[dtype](
        rows=B * NH,
        DHQK=DHQK,
        DHHV=v.shape[-1],
        **{name: call.address(x, dtype) for name, x in zip(("q", "k", "v", "i", "f", "C", "n", "m"), operands)},
        **{name: call.result(x) for name, x in zip(("h", "C_last", "n_last", "m_last"), results)},
        scale=options.scale,
        eps=options.eps,
        sigmoid_igate=options.igate == "sigmoid",
        normalize=options.normalize,
        threads=torch.get_num_threads(),
    )
    h, C, n, m = results
    return h if v.dtype == dtype else h.to(v.dtype), (C, n, m)
