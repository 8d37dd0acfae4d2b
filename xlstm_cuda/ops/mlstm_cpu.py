"""The mLSTM on a CPU: allocates results and hands addresses to the kernels of csrc/cpu (mlstm.h, mlstm_step.h)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..native import _C
from ..states import state_dtype
from .launch import CPUCall
from .signatures import MLSTMGradients, MLSTMIncoming, MLSTMOperands, MLSTMOptions, MLSTMResults, MLSTMSaved

_FORWARD = {torch.float32: _C.mlstm_forward_cpu_float32, torch.float64: _C.mlstm_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.mlstm_backward_cpu_float32, torch.float64: _C.mlstm_backward_cpu_float64}
_STORAGE = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_STEP = {torch.float32: _C.mlstm_step_cpu_float32, torch.float64: _C.mlstm_step_cpu_float64}

State = tuple[Tensor, Tensor, Tensor]  # C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)

EMPTY = ((0,), (0,), (0,))  #: shapes of a state that is not there


def state_shapes(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[tuple[int, ...], ...]:
    """Shapes of C, n, m for operands of a whole call."""
    N = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    NH, DHQK, DHHV = q.shape[-2], q.shape[-1], v.shape[-1]
    return (N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH)


def forward(operands: MLSTMOperands, options: MLSTMOptions) -> MLSTMResults:
    """Without ``return_state`` C, n and m are not computed: a short sequence spends a third of its time on them."""
    return _forward(operands, options, None)


def forward_kept(operands: MLSTMOperands, options: MLSTMOptions) -> tuple[MLSTMResults, Tensor | None]:
    """The same, and the states between chunks for `backward`, which else computes them again: a tenth of the time of both."""
    borders = _borders(operands, options)
    return _forward(operands, options, borders), borders


def _borders(operands: MLSTMOperands, options: MLSTMOptions) -> Tensor | None:
    """Memory for the states between chunks; None where there are none, for packed sequences and head dims that are no whole
    vectors, where they would take more than half of what q, k, v and h take (a quarter with float32, head dim and chunks of 64),
    and where hooks on saved tensors, such as those of checkpointing, show that memory is short.
    """
    q, v, dtype = operands.q, operands.v, state_dtype(operands.q)
    B, S, NH, DHQK = q.shape
    if operands.cu_seqlens is not None or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    count = B * NH * _C.mlstm_border_numbers(S, DHQK, v.shape[-1], options.chunk_size or 0)
    if count == 0 or count * dtype.itemsize > (q.numel() + v.numel()) * q.dtype.itemsize:
        return None
    return q.new_empty(count, dtype=dtype)


def _forward(operands: MLSTMOperands, options: MLSTMOptions, borders: Tensor | None) -> MLSTMResults:
    q, v, i, dtype = operands.q, operands.v, operands.i, state_dtype(operands.q)
    call = CPUCall()
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    dot = torch.empty_like(i, dtype=dtype, memory_format=torch.contiguous_format)
    C = n = m = None
    if options.return_state:
        C, n, m = (dot.new_empty(shape) for shape in state_shapes(q, v, operands.cu_seqlens))
        if h.shape[0] * h.shape[1] == 0:  # no step: the state passes through
            for last, first in zip((C, n, m), (operands.C0, operands.n0, operands.m0)):
                last.zero_() if first is None else last.copy_(first)
    if h.shape[0] * h.shape[1] > 0:
        _FORWARD[dtype](
            **_inputs(call, operands, options), h=call.result_view(h), dot=call.result(dot),
            C=call.result(C), n=call.result(n), m=call.result(m), borders=call.result(borders),
        )  # fmt: skip
    return MLSTMResults(h, C, n, m, dot)


def backward(incoming: MLSTMIncoming, operands: MLSTMOperands, saved: MLSTMSaved, options: MLSTMOptions) -> MLSTMGradients:
    """Without a first state there is no dC0, dn0 and dm0. A missing incoming gradient is zero."""
    q, k, v, i, f, C0, *_ = operands
    dtype = state_dtype(q)
    if q.shape[0] * q.shape[1] == 0:
        return _gradients_of_nothing(incoming, operands)
    call = CPUCall()
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    di, df = (torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (i, f))
    dC0 = dn0 = dm0 = None
    if C0 is not None:
        dC0, dn0, dm0 = (di.new_empty(shape) for shape in state_shapes(q, v, operands.cu_seqlens))
    dh = torch.zeros_like(saved.h) if incoming.dh is None else incoming.dh
    _BACKWARD[dtype](
        **_inputs(call, operands, options), exact=options.exact,
        h=call.view(saved.h, v.dtype), dh=call.view(dh, v.dtype), dot=call.address(saved.dot, dtype),
        borders=call.address(saved.borders, dtype),
        dC=call.address(incoming.dC, dtype), dn=call.address(incoming.dn, dtype),
        dq=call.result_view(dq), dk=call.result_view(dk), dv=call.result_view(dv),
        di=call.result_elements(di), df=call.result_elements(df),
        dC0=call.result(dC0), dn0=call.result(dn0), dm0=call.result(dm0),
    )  # fmt: skip
    if i.dtype is not dtype or f.dtype is not dtype:
        di, df = di.to(i.dtype), df.to(f.dtype)
    return MLSTMGradients(dq, dk, dv, di, df, dC0, dn0, dm0)


def _gradients_of_nothing(incoming: MLSTMIncoming, operands: MLSTMOperands) -> MLSTMGradients:
    """No step: the state passes through."""
    dq, dk, dv, di, df = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in operands[:5])
    C0, n0 = operands.C0, operands.n0
    if C0 is None or n0 is None:
        return MLSTMGradients(dq, dk, dv, di, df, None, None, None)
    dC = torch.zeros_like(C0) if incoming.dC is None else incoming.dC.clone()
    dn = torch.zeros_like(n0) if incoming.dn is None else incoming.dn.clone()
    return MLSTMGradients(dq, dk, dv, di, df, dC, dn, (C0 * dC).sum((-1, -2)) + (n0 * dn).sum(-1))


def _inputs(call: CPUCall, operands: MLSTMOperands, options: MLSTMOptions) -> dict[str, Any]:
    """The fields that forward and backward share."""
    q, k, v, i, f, C0, n0, m0, cu_seqlens = operands
    (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], state_dtype(q)
    return {
        "threads": torch.get_num_threads(), "B": B, "S": S, "NH": NH, "DHQK": DHQK, "DHHV": DHHV,
        "L": options.chunk_size or 0,
        "N": B if cu_seqlens is None else len(cu_seqlens) - 1, "cu_seqlens": call.address(cu_seqlens, torch.int32),
        "storage": _STORAGE.get(q.dtype, "real"), "options": options,
        "q": call.view(q, q.dtype), "k": call.view(k, q.dtype), "v": call.view(v, q.dtype),
        "i": call.elements(call.converted(i, dtype), dtype), "f": call.elements(call.converted(f, dtype), dtype),
        "C0": call.address(C0, dtype), "n0": call.address(n0, dtype), "m0": call.address(m0, dtype),
    }  # fmt: skip


def step(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: MLSTMOptions) -> tuple[Tensor, State]:
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
