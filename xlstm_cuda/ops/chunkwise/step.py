"""One token of the mLSTM (M1-M3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .normalizer import normalizer_of
from .options import Options
from .states import State


def step(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
    """M1-M3 for one token; q, k (B, NH, DHQK), v (B, NH, DHHV), i, f (B, NH). Returns h and new C, n, m."""
    C, n, m = state
    dtype = C.dtype
    log_f = logsigmoid(f.to(dtype))
    if options.igate == "exp":
        log_i = i.to(dtype)
        m_new = torch.maximum(log_f + m, log_i)
        m_new = m_new.masked_fill(m_new == -torch.inf, 0.0)
    else:
        log_i, m_new = logsigmoid(i.to(dtype)), torch.zeros_like(m)
    forget, write = torch.exp(log_f + m - m_new).unsqueeze(-1), torch.exp(log_i - m_new).unsqueeze(-1)
    written, q = write * k.to(dtype), q.to(dtype)
    C = torch.addcmul(C * forget.unsqueeze(-1), written.unsqueeze(-1), v.to(dtype).unsqueeze(-2))
    n = torch.addcmul(written, n, forget)
    h = torch.matmul(q.unsqueeze(-2), C).squeeze(-2)
    dot = options.scale * (q * n).sum(-1)
    factor = options.scale * normalizer_of(dot, m_new, options).factor
    return (h * factor.unsqueeze(-1)).to(v.dtype), (C, n, m_new)
