"""Whole sequences of the mLSTM, forward and backward: csrc/cpu/mlstm.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...native import _C
from .options import Options
from .states import State, state_dtype, state_shapes

_FORWARD = {torch.float32: _C.mlstm_forward_cpu_float32, torch.float64: _C.mlstm_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.mlstm_backward_cpu_float32, torch.float64: _C.mlstm_backward_cpu_float64}
_STORAGE = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_WIDE = 192  #: head dim from which products with a state cost more than the scores of a chunk of 128


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    given: State | None, cu_seqlens: Tensor | None, options: Options, return_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """h in v's dtype, the final C, n, m, and the dot products s q.n (B, S, NH) that the backward needs.

    Without ``return_state`` C, n and m are not computed, and empty: a short sequence spends a third of its time on them.
    """
    dtype = state_dtype(q)
    h, dot = v.new_empty(v.shape), i.new_empty(i.shape, dtype=dtype)
    shapes = state_shapes(q, v, cu_seqlens) if return_state else ((0,),) * 3
    if h.shape[0] * h.shape[1] == 0:
        C, n, m = (x.clone() for x in given) if given and return_state else (q.new_zeros(shape, dtype=dtype) for shape in shapes)
        return h, C, n, m, dot
    C, n, m = (q.new_empty(shape, dtype=dtype) for shape in shapes)
    inputs = _Inputs(q, k, v, i, f, given, cu_seqlens, options)
    _FORWARD[dtype](
        torch.get_num_threads(), **inputs.fields,
        h=_view(h), C=C.data_ptr(), n=n.data_ptr(), m=m.data_ptr(), dot=dot.data_ptr(),
    )  # fmt: skip
    return h, C, n, m, dot


def backward(
    dh: Tensor | None,
    dC: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    given: State | None,
    cu_seqlens: Tensor | None,
    h: Tensor,
    dot: Tensor,
    C: Tensor,
    n: Tensor,
    options: Options,
    exact: bool,
) -> tuple[Tensor, ...]:
    """dq, dk, dv, di, df in the dtypes of q, k, v, i, f, and dC0, dn0, dm0, which are empty unless a state is given.

    A missing incoming gradient is zero.
    """
    dtype = state_dtype(q)
    if q.shape[0] * q.shape[1] == 0:
        return _gradients_of_nothing(dC, dn, q, k, v, i, f, given)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    di, df = (torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (i, f))
    shapes = ((0,),) * 3 if given is None else state_shapes(q, v, cu_seqlens)
    dC0, dn0, dm0 = (q.new_empty(shape, dtype=dtype) for shape in shapes)
    inputs = _Inputs(q, k, v, i, f, given, cu_seqlens, options)
    rows = [_rows(x, v.dtype) for x in (h, torch.zeros_like(h) if dh is None else dh)]
    dot = _contiguous(dot, dtype)
    dC, dn = (None if x is None else _contiguous(x, dtype) for x in (dC, dn))
    _BACKWARD[dtype](
        torch.get_num_threads(), **inputs.fields,
        exact=exact, h=_view(rows[0]), dh=_view(rows[1]), dot=dot.data_ptr(),
        dC=_address(dC), dn=_address(dn), dq=_view(dq), dk=_view(dk), dv=_view(dv), di=_view(di), df=_view(df),
        dC0=dC0.data_ptr(), dn0=dn0.data_ptr(), dm0=dm0.data_ptr(),
    )  # fmt: skip
    return dq, dk, dv, _resolved(di, i.dtype), _resolved(df, f.dtype), dC0, dn0, dm0


def _gradients_of_nothing(
    dC: Tensor | None, dn: Tensor | None, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    given: State | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """No step: the state passes through."""
    gradients = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, i, f)]
    if given is None:
        return *gradients, *(q.new_empty((0,), dtype=state_dtype(q)) for _ in range(3))
    C0, n0, _ = given
    dC = torch.zeros_like(C0) if dC is None else dC.clone()
    dn = torch.zeros_like(n0) if dn is None else dn.clone()
    return *gradients, dC, dn, (C0 * dC).sum((-1, -2)) + (n0 * dn).sum(-1)


class _Inputs:
    """The fields that forward and backward share. Keeps the tensors alive that their addresses belong to."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
        given: State | None, cu_seqlens: Tensor | None, options: Options,
    ):  # fmt: skip
        (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], state_dtype(q)
        q, k, v = _rows(q, q.dtype), _rows(k, q.dtype), _rows(v, q.dtype)
        i, f = _resolved(i, dtype), _resolved(f, dtype)
        C0, n0, m0 = (_contiguous(x, dtype) for x in given) if given else (None, None, None)
        borders = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.tensors = (q, k, v, i, f, C0, n0, m0, borders)
        self.fields: dict[str, Any] = {
            "B": B, "S": S, "NH": NH, "DHQK": DHQK, "DHHV": DHHV,
            "L": options.chunk_size or (64 if max(DHQK, DHHV) < _WIDE else 128),
            "N": B if borders is None else len(borders) - 1, "cu_seqlens": _address(borders),
            "storage": _STORAGE.get(q.dtype, "real"), "scale": options.scale, "eps": options.eps,
            "sigmoid_igate": options.igate == "sigmoid", "normalize": options.normalize,
            "q": _view(q), "k": _view(k), "v": _view(v), "i": _view(i), "f": _view(f),
            "C0": _address(C0), "n0": _address(n0), "m0": _address(m0),
        }  # fmt: skip


def _resolved(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Of this dtype, and without a negation that PyTorch has only noted: the kernels read memory."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x.resolve_neg() if x.is_neg() else x


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S, NH, D), the last axis contiguous."""
    x = _resolved(x, dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _resolved(x, dtype).contiguous()


def _view(x: Tensor) -> tuple[int, int, int, int]:
    """Address and strides of batch, step and head."""
    strides = x.stride()
    return x.data_ptr(), strides[0], strides[1], strides[2]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
