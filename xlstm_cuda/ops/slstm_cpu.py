"""The sLSTM recurrence on the CPU: allocates, hands pointers to csrc/cpu, and leaves dR to one matrix product over all steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import _C

_FORWARD = {torch.float32: _C.slstm_forward_cpu_float32, torch.float64: _C.slstm_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.slstm_backward_cpu_float32, torch.float64: _C.slstm_backward_cpu_float64}


def state_dtype(x: torch.dtype) -> torch.dtype:
    return torch.float64 if x == torch.float64 else torch.float32


def saved_shapes(B: int, S: int, NH: int, DH: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the gates (d, sf, u, w of csrc/slstm/cell.cuh) and the cells (c, n) that forward leaves for backward."""
    padded = -(-DH // _C.UNIT_PADDING) * _C.UNIT_PADDING
    return (B, S, NH, 4, padded), (B, S, NH, 2, padded)


def forward(
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    n0: Tensor | None,
    m0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    forget_gate: str,
    save: bool,
    single_step: bool = False,
) -> tuple[Tensor, ...]:
    """h in x's dtype, the final h, c, n, m, and the saved gates and cells (empty unless `save`).

    `single_step` (S = 1) reads R as it lies instead of packing it first: faster for one step, and rounded in another order.
    """
    B, S, _, NH, DH = x.shape
    dtype = state_dtype(x.dtype)
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    x_, R_, b_ = _rows(_as(x, dtype)), _as(R, dtype).contiguous(), None if b is None else _as(b, dtype).contiguous()
    start = [_contiguous(s) for s in (h0, c0, n0, m0)]
    cu_seqlens = _contiguous(cu_seqlens)
    h = torch.empty((B, S, NH, DH), dtype=dtype)
    last = h.new_empty((4, N, NH, DH)).unbind(0) if single_step else [h.new_empty((N, NH, DH)) for _ in range(4)]
    gates, cells = map(h.new_empty, saved_shapes(B, S, NH, DH) if save else ((0,), (0,)))
    _FORWARD[dtype](
        shape=_shape(N, S, NH, DH, reset, cu_seqlens, forget_gate),
        x=x_.data_ptr(),
        x_strides=(x_.stride(0), x_.stride(1), x_.stride(2), x_.stride(3)),
        R=R_.data_ptr(),
        b=_pointer(b_),
        h0=_pointer(start[0]),
        c0=_pointer(start[1]),
        n0=_pointer(start[2]),
        m0=_pointer(start[3]),
        h=h.data_ptr(),
        h_last=last[0].data_ptr(),
        c_last=last[1].data_ptr(),
        n_last=last[2].data_ptr(),
        m_last=last[3].data_ptr(),
        saved_gates=gates.data_ptr(),
        saved_cells=cells.data_ptr(),
        single_step=single_step,
        threads=torch.get_num_threads(),
    )
    return _as(h, x.dtype), *last, gates, cells


def backward(
    dh: Tensor | None,
    dh_last: Tensor | None,
    dc_last: Tensor | None,
    dn_last: Tensor | None,
    R: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    n0: Tensor | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    forget_gate: str,
) -> tuple[Tensor, ...]:
    """dx, dR, db, dh0, dc0, dn0, dm0, all in the state's dtype."""
    B, S, NH = gates.shape[:3]
    DH, dtype = R.shape[-1], gates.dtype
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    R_ = R.to(dtype).contiguous()
    start = [_contiguous(s) for s in (h0, c0, n0)]
    cu_seqlens = _contiguous(cu_seqlens)
    dh_ = None if dh is None else _rows(dh.to(dtype))
    ends = [_contiguous(s) for s in (dh_last, dc_last, dn_last)]
    dx = torch.empty((B, S, 4, NH, DH), dtype=dtype)
    h_prev = torch.empty((B, S, NH, DH), dtype=dtype)
    db_rows = torch.empty((N, 4, NH, DH), dtype=dtype)
    first = [torch.empty((N, NH, DH), dtype=dtype) for _ in range(4)]
    _BACKWARD[dtype](
        shape=_shape(N, S, NH, DH, reset, cu_seqlens, forget_gate),
        R=R_.data_ptr(),
        h0=_pointer(start[0]),
        c0=_pointer(start[1]),
        n0=_pointer(start[2]),
        saved_gates=gates.data_ptr(),
        saved_cells=cells.data_ptr(),
        dh=_pointer(dh_),
        dh_strides=(0, 0, 0) if dh_ is None else (dh_.stride(0), dh_.stride(1), dh_.stride(2)),
        dh_last=_pointer(ends[0]),
        dc_last=_pointer(ends[1]),
        dn_last=_pointer(ends[2]),
        dx=dx.data_ptr(),
        h_prev=h_prev.data_ptr(),
        db_rows=db_rows.data_ptr(),
        dh0=first[0].data_ptr(),
        dc0=first[1].data_ptr(),
        dn0=first[2].data_ptr(),
        dm0=first[3].data_ptr(),
        threads=torch.get_num_threads(),
    )
    dR = torch.empty((4, NH, DH, DH), dtype=dtype)
    by_head = h_prev.view(B * S, NH, DH).transpose(0, 1)
    for gate in range(4):
        torch.bmm(dx.view(B * S, 4, NH, DH)[:, gate].permute(1, 2, 0), by_head, out=dR[gate])
    return dx, dR, db_rows.sum(0), *first


def _shape(N: int, S: int, NH: int, DH: int, reset: Tensor | None, cu_seqlens: Tensor | None, forget_gate: str) -> object:
    return _C.SLSTMShape(
        B=N,
        S=S,
        NH=NH,
        DH=DH,
        cu_seqlens=_pointer(cu_seqlens),
        reset=_pointer(reset),
        reset_stride_b=0 if reset is None else reset.stride(0),
        reset_stride_s=0 if reset is None else reset.stride(1),
        exp_forget_gate=forget_gate == "exp",
    )


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
