"""The gate scan of all chunks (M4-M6): stabilisers and weights, which need no product of q and k. Allocates for csrc/cpu."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...native import _C
from ..launch import CPUCall

_SCAN = {torch.float32: _C.mlstm_gates_cpu_float32, torch.float64: _C.mlstm_gates_cpu_float64}
_WEIGHTS = {torch.float32: _C.mlstm_weights_cpu_float32, torch.float64: _C.mlstm_weights_cpu_float64}


class Gates(NamedTuple):
    """The gate scan of all chunks; t and j are steps of one chunk, a weight is exp of a number that is at most 0.

    A forget gate of -inf starts a new segment inside its chunk: weights between segments are exactly 0. Exponents are float64,
    weights have the dtype of states.
    """

    beta: Tensor  #: (NC, R, L) i_j - b_j; -inf where the input gate is closed
    rise: Tensor  #: (NC, R, L) m_t - b_t, so that W_tj = exp(beta_j - rise_t)
    m: Tensor  #: (NC, R, L) m_t (M6)
    u: Tensor  #: (NC, R, L) exp(b_t + m_{k-1} - m_t), what is left at t of the chunk's initial state
    w: Tensor  #: (NC, R, L) exp(a_j - m_k), what step j leaves in the chunk's final state
    g: Tensor  #: (NC, R) exp(G + m_{k-1} - m_k), what is left of the initial state in the final one
    m_last: Tensor  #: (R,) m after the last chunk
    segment: Tensor  #: (NC, R, L) int32, number of resets up to t inside the chunk
    resets: bool  #: whether any forget gate is -inf


def scan_gates(i: Tensor, f: Tensor, m0: Tensor, igate: str) -> Gates:
    """i, f (NC, R, L) float64, padded with i = -inf, f = +inf; m0 (R,)."""
    log_i, log_f, m0 = (i if igate == "exp" else logsigmoid(i)), logsigmoid(f), m0.contiguous()
    beta, rise, m = (torch.empty_like(log_f) for _ in range(3))
    u, w = (torch.empty_like(log_f, dtype=m0.dtype) for _ in range(2))
    g, m_last, segment = m0.new_empty(f.shape[:2]), torch.empty_like(m0), torch.empty_like(log_f, dtype=torch.int32)
    call = CPUCall()
    chunks, rows, L = f.shape
    resets = _SCAN[m0.dtype](
        chunks=chunks, rows=rows, L=L, sigmoid_igate=igate == "sigmoid",
        log_i=call.address(log_i, torch.float64), log_f=call.address(log_f, torch.float64), m0=call.address(m0, m0.dtype),
        beta=call.result(beta), rise=call.result(rise), m=call.result(m), u=call.result(u), w=call.result(w),
        g=call.result(g), m_last=call.result(m_last), segment=call.result(segment), threads=torch.get_num_threads(),
    )  # fmt: skip
    return Gates(beta, rise, m, u, w, g, m_last, segment, resets)


def visible(segment: Tensor) -> Tensor:
    """(..., t, j): step j is seen from step t, that is j <= t and no reset between them."""
    L = segment.shape[-1]
    return torch.ones(L, L, dtype=torch.bool, device=segment.device).tril() & (segment.unsqueeze(-1) == segment.unsqueeze(-2))


def weights(gates: Gates, group: slice) -> Tensor:
    """W_tj of a group of chunks, (G, R, L, L), 0 where j is not seen from t."""
    beta, rise, segment = gates.beta[group], gates.rise[group], gates.segment[group]
    W = gates.u.new_empty((*beta.shape, beta.shape[-1]))
    call = CPUCall()
    _WEIGHTS[W.dtype](
        matrices=beta.shape[0] * beta.shape[1], L=beta.shape[-1], beta=call.address(beta, torch.float64),
        rise=call.address(rise, torch.float64), segment=call.address(segment, torch.int32), W=call.result(W),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return W
