"""The gate scan of all chunks (M4-M6): stabilisers and weights, which need no product of q and k."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Gates(NamedTuple):
    """The gate scan of all chunks, float64; t and j are steps of one chunk, a weight is exp of a number that is at most 0.

    A forget gate of -inf starts a new segment inside its chunk: weights between segments are exactly 0.
    """

    beta: Tensor  #: (NC, R, L) i_j - b_j; -inf where the input gate is closed
    rise: Tensor  #: (NC, R, L) m_t - b_t, so that W_tj = exp(beta_j - rise_t)
    m: Tensor  #: (NC, R, L) m_t (M6)
    u: Tensor  #: (NC, R, L) exp(b_t + m_{k-1} - m_t), what is left at t of the chunk's initial state
    w: Tensor  #: (NC, R, L) exp(a_j - m_k), what step j leaves in the chunk's final state
    g: Tensor  #: (NC, R) exp(G + m_{k-1} - m_k), what is left of the initial state in the final one
    m_last: Tensor  #: (R,) m after the last chunk
    segment: Tensor | None  #: (NC, R, L) number of resets up to t inside the chunk; None when there is none anywhere


def scan_gates(i: Tensor, f: Tensor, m0: Tensor, igate: str) -> Gates:
    """i, f (NC, R, L) float64, padded with i = -inf, f = +inf; m0 (R,)."""
    log_i, log_f = (i if igate == "exp" else logsigmoid(i)), logsigmoid(f)
    reset = log_f == -torch.inf
    segment = reset.cumsum(-1) if bool(reset.any()) else None
    if segment is not None:
        log_f = log_f.masked_fill(reset, 0.0)
    b = log_f.cumsum(-1)
    beta = log_i - b
    total = b[..., -1]
    passes = None if segment is None else segment[..., -1] == 0  # the initial state reaches the chunk's end

    if igate == "sigmoid":  # m = 0 everywhere, but an incoming m0 still scales the incoming state
        m_before = torch.zeros_like(total)
        m_before[0] = m0
        m_after = torch.zeros_like(total)
        m_last = torch.zeros_like(m0)
        rise = -b
    else:
        # A reset with a closed input gate leaves the fresh state, whose m is 0.
        level = beta if segment is None else torch.where(reset & (beta == -torch.inf), -b, beta)
        if segment is None:
            highest = level.cummax(-1).values
        else:
            highest = (
                level.unsqueeze(-2).masked_fill(~visible(segment, level.shape[-1]), -torch.inf).amax(-1)
            )  # (NC, R, t, j) -> (NC, R, t)
        top = total + highest[..., -1]
        borders = [m0.double()]
        for k in range(total.shape[0]):
            carried = total[k] + borders[-1]
            if passes is not None:
                carried = carried.masked_fill(~passes[k], -torch.inf)
            m_k = torch.maximum(carried, top[k])  # (M5)
            # Rounded to the state's precision, so that a sequence split at a chunk border gives the same bits.
            borders.append(torch.where(m_k == -torch.inf, 0.0, m_k).to(m0.dtype).double())
        m_before, m_after, m_last = torch.stack(borders[:-1]), torch.stack(borders[1:]), borders[-1].to(m0.dtype)
        start = m_before.unsqueeze(-1)
        if segment is not None:
            start = torch.where(segment == 0, start, -torch.inf)
        rise = torch.maximum(start, highest)  # (M6)
        rise = torch.where(rise == -torch.inf, -b, rise)

    m = b + rise
    u = torch.exp(m_before.unsqueeze(-1) - rise)
    w = torch.exp(total.unsqueeze(-1) + beta - m_after.unsqueeze(-1))
    g = torch.exp(total + m_before - m_after)
    if segment is not None and passes is not None:
        u = u.masked_fill(segment != 0, 0.0)
        w = w.masked_fill(segment != segment[..., -1:], 0.0)
        g = g.masked_fill(~passes, 0.0)
    return Gates(beta, rise, m, u, w, g, m_last, segment)


def visible(segment: Tensor | None, L: int) -> Tensor:
    """(..., t, j): step j is seen from step t, that is j <= t and no reset between them."""
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    return causal if segment is None else causal & (segment.unsqueeze(-1) == segment.unsqueeze(-2))


def weights(gates: Gates, group: slice, dtype: torch.dtype) -> Tensor:
    """W_tj of a group of chunks, (G, R, L, L), 0 where j is not seen from t."""
    exponent = gates.beta[group].unsqueeze(-2) - gates.rise[group].unsqueeze(-1)
    segment = None if gates.segment is None else gates.segment[group]
    exponent.masked_fill_(~visible(segment, exponent.shape[-1]), -torch.inf)
    return exponent.to(dtype).exp_()
