"""The mLSTM as torch ops with an exact backward (M1-M6 in csrc/mlstm/README.md).

One forward and one backward op serve every kernel backend; `chunkwise` is the CPU's implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import chunkwise, mlstm_kernels, mlstm_step_kernel
from .chunkwise.states import State, state_dtype, state_shapes
from .library import define, differentiable_once, must_dispatch

KERNEL_BACKENDS = ("cuda", "simt")

_OPERANDS = "Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? C0, Tensor? n0, Tensor? m0, Tensor? cu_seqlens"
_OPTIONS = "float scale, str igate, bool normalize, float eps, int? chunk_size, str backend"


def _forward_impl(
    q, k, v, i, f, C0, n0, m0, cu_seqlens, scale, igate, normalize, eps, chunk_size, backend, return_state=True
):  # fmt: skip
    options = chunkwise.Options(scale, igate, normalize, eps, chunk_size)
    if backend in KERNEL_BACKENDS:
        return mlstm_kernels.forward(q, k, v, i, f, C0, n0, m0, cu_seqlens, options, backend)
    return chunkwise.forward(q, k, v, i, f, _given(C0, n0, m0), cu_seqlens, options, return_state)


def _forward_fake(
    q, k, v, i, f, C0, n0, m0, cu_seqlens, scale, igate, normalize, eps, chunk_size, backend, return_state=True
):  # fmt: skip
    dtype = state_dtype(q)
    shapes = state_shapes(q, v, cu_seqlens) if return_state or backend in KERNEL_BACKENDS else ((0,),) * 3
    states = [q.new_empty(shape, dtype=dtype) for shape in shapes]
    dot = mlstm_kernels.empty_dot(i, dtype) if backend in KERNEL_BACKENDS else i.new_empty(i.shape, dtype=dtype)
    return v.new_empty(v.shape), *states, dot


def _backward_impl(
    dh, dC, dn, q, k, v, i, f, C0, n0, m0, cu_seqlens, h, dot, C, n,
    scale, igate, normalize, eps, chunk_size, backend, exact,
):  # fmt: skip
    options = chunkwise.Options(scale, igate, normalize, eps, chunk_size)
    if backend in KERNEL_BACKENDS:
        return mlstm_kernels.backward(
            dh, dC, dn, q, k, v, i, f, C0, n0, m0, cu_seqlens, h, dot, C, n, options, exact, backend
        )  # fmt: skip
    return chunkwise.backward(dh, dC, dn, q, k, v, i, f, _given(C0, n0, m0), cu_seqlens, h, dot, C, n, options, exact)


def _backward_fake(
    dh, dC, dn, q, k, v, i, f, C0, n0, m0, cu_seqlens, h, dot, C, n,
    scale, igate, normalize, eps, chunk_size, backend, exact,
):  # fmt: skip
    gradients = [x.new_empty(x.shape) for x in (q, k, v, i, f)]
    needed = C0 is not None or backend in KERNEL_BACKENDS
    shapes = state_shapes(q, v, cu_seqlens) if needed else ((0,),) * 3
    return *gradients, *(q.new_empty(shape, dtype=state_dtype(q)) for shape in shapes)


_forward = define(
    "mlstm_forward",
    f"({_OPERANDS}, {_OPTIONS}, bool return_state=True) -> (Tensor h, Tensor C, Tensor n, Tensor m, Tensor dot)",
    _forward_impl,
    _forward_fake,
)
_backward = define(
    "mlstm_backward",
    f"(Tensor? dh, Tensor? dC, Tensor? dn, {_OPERANDS}, Tensor h, Tensor dot, Tensor C, Tensor n, {_OPTIONS}, bool exact)"
    " -> (Tensor dq, Tensor dk, Tensor dv, Tensor di, Tensor df, Tensor dC0, Tensor dn0, Tensor dm0)",
    _backward_impl,
    _backward_fake,
)


def _step_impl(q, k, v, i, f, C, n, m, scale, igate, normalize, eps, backend):
    h, state = mlstm_step_kernel.mlstm_step(
        q, k, v, i, f, (C, n, m), scale=scale, igate=igate, normalize=normalize, eps=eps, backend=backend
    )
    return h, *state


def _step_fake(q, k, v, i, f, C, n, m, scale, igate, normalize, eps, backend):
    return v.new_empty(v.shape), *(s.new_empty(s.shape) for s in (C, n, m))


_step = define(
    "mlstm_step",
    "(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor C, Tensor n, Tensor m,"
    " float scale, str igate, bool normalize, float eps, str backend) -> (Tensor h, Tensor C_new, Tensor n_new, Tensor m_new)",
    _step_impl,
    _step_fake,
)


class _MLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, i, f, C0, n0, m0, cu_seqlens, options, exact, return_state):
        h, C, n, m, dot = _forward(q, k, v, i, f, C0, n0, m0, cu_seqlens, *options, return_state)
        ctx.save_for_backward(q, k, v, i, f, C0, n0, m0, cu_seqlens, h, dot, C, n)
        ctx.options, ctx.exact = options, exact
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(m)
        return h, C, n, m

    @staticmethod
    def backward(ctx: Any, dh, dC, dn, dm):
        saved = ctx.saved_tensors  # read once: activation checkpointing gives them out only once
        with torch.no_grad():
            gradients = _backward(dh, dC, dn, *saved, *ctx.options, ctx.exact)
        gradients = differentiable_once("mlstm", gradients, (dh, dC, dn, *saved))
        needed = ctx.needs_input_grad[:8]
        return *(g if need else None for g, need in zip(gradients, needed)), None, None, None, None


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State | None,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    igate: str,
    normalize: bool,
    eps: float,
    exact: bool,
    chunk_size: int | None,
    backend: str,
    return_state: bool = True,
) -> tuple[Tensor, State]:
    """Validated operands of `functional.mlstm`; returns h and the final C, n, m (m without gradient).

    Without ``return_state`` backend "cpu" computes no final state.
    """
    C0, n0, m0 = state or (None, None, None)
    options = (scale, igate, normalize, eps, chunk_size, backend)
    h, C, n, m = _MLSTM.apply(q, k, v, i, f, C0, n0, m0, cu_seqlens, options, exact, return_state)
    return h, (C, n, m)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State,
    *,
    scale: float,
    igate: str,
    normalize: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, State]:
    """Validated operands of `functional.mlstm_step`, without gradients; returns h and the new C, n, m."""
    if backend in KERNEL_BACKENDS:
        run = _step if must_dispatch(q) else _step_impl
        h, *new = run(q, k, v, i, f, *state, scale, igate, normalize, eps, backend)
        return h, (new[0], new[1], new[2])
    if must_dispatch(q):  # in eager mode the op's dispatch would cost more than the step
        h, C, n, m, _ = _forward(
            *(x.unsqueeze(1) for x in (q, k, v, i, f)), *state, None, scale, igate, normalize, eps, None, backend
        )
        return h.squeeze(1), (C, n, m)
    return chunkwise.step(q, k, v, i, f, state, chunkwise.Options(scale, igate, normalize, eps, None))


def _given(C0: Any, n0: Any, m0: Any) -> State | None:
    return None if C0 is None else (C0, n0, m0)
