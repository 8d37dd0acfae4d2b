"""The sLSTM recurrence on the CPU: allocates, hands addresses to csrc/cpu, and leaves dR to one matrix product over all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import _C
from ..states import state_dtype
from .launch import CPUCall, SLSTMShape
from .signatures import (
    SLSTMBackwardOptions,
    SLSTMGradients,
    SLSTMIncoming,
    SLSTMOperands,
    SLSTMOptions,
    SLSTMResults,
    SLSTMSaved,
)

_FORWARD = {torch.float32: _C.slstm_forward_cpu_float32, torch.float64: _C.slstm_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.slstm_backward_cpu_float32, torch.float64: _C.slstm_backward_cpu_float64}

_RECURRENT = {torch.float32: _C.slstm_recurrent_gradient_cpu_float32, torch.float64: _C.slstm_recurrent_gradient_cpu_float64}


def saved_shapes(B: int, S: int, NH: int, DH: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the gates (d, sf, u, w of csrc/slstm/cell.cuh) and the cells (c, n) that forward leaves for backward."""
    padded = -(-DH // _C.UNIT_PADDING) * _C.UNIT_PADDING
    return (B, S, NH, 4, padded), (B, S, NH, 2, padded)


def forward(operands: SLSTMOperands, options: SLSTMOptions, single_step: bool = False) -> SLSTMResults:
    """All steps.

    `single_step` (S = 1) reads R as it lies instead of packing it first: faster for one step, and rounded in another order.
    """
    x, R, b, h0, c0, n0, m0, reset, cu_seqlens = operands
    B, S, _, NH, DH = x.shape
    dtype = state_dtype(x)
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    call = CPUCall()
    wide, R, b = _as(x, dtype), _as(R, dtype), None if b is None else _as(b, dtype)
    view, x_gate_stride = call.gate_views(wide, dtype)
    h = call.empty(B, S, NH, DH, dtype=dtype)
    last = h.new_empty((4, N, NH, DH)).unbind(0) if single_step else [h.new_empty((N, NH, DH)) for _ in range(4)]
    h_last, c_last, n_last, m_last = last
    if single_step:
        gates = cells = h.new_empty(0)
    else:
        gates, cells = map(h.new_empty, saved_shapes(B, S, NH, DH) if options.save else ((0,), (0,)))
    _FORWARD[dtype](
        shape=_shape(call, N, S, NH, DH, reset, cu_seqlens, options.forget_gate),
        x=view, x_gate_stride=x_gate_stride, R=call.address(R, dtype), b=call.address(b, dtype),
        h0=call.address(h0, dtype), c0=call.address(c0, dtype), n0=call.address(n0, dtype), m0=call.address(m0, dtype),
        h=call.result(h), h_last=call.result(h_last), c_last=call.result(c_last), n_last=call.result(n_last),
        m_last=call.result(m_last), saved_gates=call.result(gates), saved_cells=call.result(cells),
        single_step=single_step, threads=torch.get_num_threads(),
    )  # fmt: skip
    return SLSTMResults(_as(h, x.dtype), h_last, c_last, n_last, m_last, gates, cells)


def backward(incoming: SLSTMIncoming, saved: SLSTMSaved, options: SLSTMBackwardOptions) -> SLSTMGradients:
    """All steps, and the product for dR; everything in the state's dtype."""
    R, h0, c0, n0, reset, cu_seqlens, gates, cells, _ = saved
    B, S, NH = gates.shape[:3]
    DH, dtype = R.shape[-1], gates.dtype
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    call = CPUCall()
    R = _as(R, dtype)
    dh, dh_last, dc_last, dn_last = incoming
    dh = None if dh is None else _as(dh, dtype)
    dx, h_prev = call.empty(B, S, 4, NH, DH, dtype=dtype), call.empty(B, S, NH, DH, dtype=dtype)
    db_rows = call.empty(N, 4, NH, DH, dtype=dtype)
    first = [call.empty(N, NH, DH, dtype=dtype) for _ in range(4)]
    _BACKWARD[dtype](
        shape=_shape(call, N, S, NH, DH, reset, cu_seqlens, options.forget_gate), R=call.address(R, dtype),
        h0=call.address(h0, dtype), c0=call.address(c0, dtype), n0=call.address(n0, dtype),
        saved_gates=call.address(gates, dtype), saved_cells=call.address(cells, dtype), dh=call.view(dh, dtype),
        dh_last=call.address(dh_last, dtype), dc_last=call.address(dc_last, dtype), dn_last=call.address(dn_last, dtype),
        dx=call.result(dx), h_prev=call.result(h_prev), db_rows=call.result(db_rows),
        dh0=call.result(first[0]), dc0=call.result(first[1]), dn0=call.result(first[2]), dm0=call.result(first[3]),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return SLSTMGradients(dx, _recurrent_gradient(call, dx, h_prev), db_rows.sum(0), *first)


def _recurrent_gradient(call: CPUCall, dx: Tensor, h_prev: Tensor) -> Tensor:
    """dR (4, NH, DH, DH), the product of dx (B, S, 4, NH, DH) and h_prev (B, S, NH, DH) over all tokens."""
    B, S, NH, DH = h_prev.shape
    dR = call.empty(4, NH, DH, DH, dtype=dx.dtype)
    if DH % _C.UNIT_PADDING == 0:
        _RECURRENT[dx.dtype](
            tokens=B * S, NH=NH, DH=DH, dx=call.result(dx), h_prev=call.result(h_prev), dR=call.result(dR),
            threads=torch.get_num_threads(),
        )  # fmt: skip
        return dR
    by_head = h_prev.view(B * S, NH, DH).transpose(0, 1)
    for gate in range(4):
        torch.bmm(dx.view(B * S, 4, NH, DH)[:, gate].permute(1, 2, 0), by_head, out=dR[gate])
    return dR


def _shape(
    call: CPUCall, N: int, S: int, NH: int, DH: int, reset: Tensor | None, cu_seqlens: Tensor | None, forget_gate: str
) -> SLSTMShape:
    flags = call.elements(None if reset is None else reset.unsqueeze(-1), torch.bool)
    return SLSTMShape(N, S, NH, DH, call.address(cu_seqlens, torch.int32), flags, forget_gate)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)
