"""The sLSTM as torch ops with an exact backward (S1-S4 in csrc/slstm/README.md).

One forward and one backward op serve every kernel backend: `slstm_cpu` is the CPU's implementation, `slstm_kernels` that of the
CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..states import state_dtype
from . import signatures as sig
from . import slstm_cpu, slstm_kernels
from .library import Op, differentiable_once, differentiated, must_dispatch, refuse_forward_mode, refuse_torch_func, returned

State = tuple[Tensor, ...]  # h, c, n, m, each (B, NH, DH)


def _forward_impl(operands: sig.SLSTMOperands, options: sig.SLSTMOptions, single_step: bool = False) -> sig.SLSTMResults:
    forward = slstm_cpu.forward if options.backend == "cpu" else slstm_kernels.forward
    return forward(operands, options, single_step)


def _forward_fake(operands: sig.SLSTMOperands, options: sig.SLSTMOptions) -> sig.SLSTMResults:
    x, cu_seqlens = operands.x, operands.cu_seqlens
    B, S, _, NH, DH = x.shape
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = state_dtype(x)
    shapes, dtypes = slstm_cpu.saved_shapes(B, S, NH, DH), (dtype, dtype)
    if options.backend != "cpu":
        shapes, dtypes = slstm_kernels.saved_shapes(B, S, NH, DH), slstm_kernels.saved_dtypes(x.dtype)
    last = (x.new_empty((N, NH, DH), dtype=dtype) for _ in range(4))
    saved = (x.new_empty(shape if options.save else (0,), dtype=dtype) for shape, dtype in zip(shapes, dtypes))
    return sig.SLSTMResults(x.new_empty((B, S, NH, DH)), *last, *saved)


def _backward_impl(incoming: sig.SLSTMIncoming, saved: sig.SLSTMSaved, options: sig.SLSTMBackwardOptions) -> sig.SLSTMGradients:
    backward = slstm_cpu.backward if options.backend == "cpu" else slstm_kernels.backward
    return backward(incoming, saved, options)


def _backward_fake(incoming: sig.SLSTMIncoming, saved: sig.SLSTMSaved, options: sig.SLSTMBackwardOptions) -> sig.SLSTMGradients:
    gates, cells, cu_seqlens = saved.gates, saved.cells, saved.cu_seqlens
    B, S, NH = gates.shape[:3]
    DH = saved.R.shape[-1]
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shapes = [(4, NH, DH, DH), (4, NH, DH)] + [(N, NH, DH)] * 4
    dx = (cells if saved.h is None else saved.h).new_empty((B, S, 4, NH, DH))
    return sig.SLSTMGradients(dx, *(cells.new_empty(shape) for shape in shapes))


FORWARD = Op("slstm_forward", (sig.SLSTMOperands, sig.SLSTMOptions), sig.SLSTMResults, _forward_impl, _forward_fake)
BACKWARD = Op(
    "slstm_backward",
    (sig.SLSTMIncoming, sig.SLSTMSaved, sig.SLSTMBackwardOptions),
    sig.SLSTMGradients,
    _backward_impl,
    _backward_fake,
)


class _SLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], options: sig.SLSTMOptions, *args: Any) -> tuple[Tensor, ...]:
        results = sig.SLSTMResults(*run(sig.SLSTMOperands(*args), options._replace(save=True)))
        x, R, b, h0, c0, n0, _, reset, cu_seqlens = args
        h = None if options.backend == "cpu" else results.h
        ctx.save_for_backward(R, h0, c0, n0, reset, cu_seqlens, results.gates, results.cells, h)
        ctx.options = sig.SLSTMBackwardOptions(options.forget_gate, options.backend)
        ctx.dtypes = x.dtype, R.dtype, None if b is None else b.dtype
        ctx.set_materialize_grads(False)
        gates, cells = (s if options.save else s.new_empty(0) for s in (results.gates, results.cells))
        ctx.mark_non_differentiable(results.m_last, gates, cells)
        return *results[:5], gates, cells

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_last: Any, dc_last: Any, dn_last: Any, *_: None) -> Any:
        saved = sig.SLSTMSaved(*ctx.saved_tensors)  # read once: activation checkpointing gives them out only once
        gradients = BACKWARD.in_backward(saved.R, sig.SLSTMIncoming(dh, dh_last, dc_last, dn_last), saved, ctx.options)
        weights = [g if dtype is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes)]
        return None, None, *returned("slstm", (*weights, *gradients[3:]), ctx.needs_input_grad[2:])

    jvp = refuse_forward_mode("slstm")


FORWARD.differentiate(lambda run, operands, options: _SLSTM.apply(run, options, *operands))  # type: ignore[no-untyped-call]
BACKWARD.differentiate(lambda run, *groups: differentiable_once("slstm", run(*groups)))


class _CheckpointedSLSTM(torch.autograd.Function):
    """Keeps x and the state before every chunk of steps; backward runs forward again, chunk by chunk from the last one.

    A state hands over exactly, so the second run gives the bits of the first, and the gradients those of `_SLSTM` but for dR and
    db, whose sums over the steps are cut into chunks.
    """

    @staticmethod
    def forward(ctx: Any, every: int, options: sig.SLSTMOptions, *args: Any) -> tuple[Tensor, ...]:
        x, R, b, *state, reset, _ = args
        borders: list[Tensor | None] = []
        parts = []
        for steps in _chunks(x.shape[1], every):
            borders += state
            flags = None if reset is None else reset[:, steps]
            h, *state, _, _ = FORWARD(x, sig.SLSTMOperands._make((x[:, steps], R, b, *state, flags, None)), options)
            parts.append(h)
        ctx.save_for_backward(x, R, b, reset, *borders)
        ctx.every, ctx.options = every, options
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(state[3])
        return torch.cat(parts, 1), *state

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_last: Any, dc_last: Any, dn_last: Any, _: None) -> Any:
        x, R, b, reset, *borders = ctx.saved_tensors
        options = ctx.options._replace(save=True)
        backward_options = sig.SLSTMBackwardOptions(options.forget_gate, options.backend)
        dstate: Any = dh_last, dc_last, dn_last
        dR: Any = 0
        db: Any = 0
        dm0: Any = None
        dxs = []
        with torch.no_grad():
            for index, steps in reversed(list(enumerate(_chunks(x.shape[1], ctx.every)))):
                state = borders[4 * index : 4 * index + 4]
                flags = None if reset is None else reset[:, steps]
                h, *_, gates, cells = FORWARD(x, sig.SLSTMOperands._make((x[:, steps], R, b, *state, flags, None)), options)
                kept_h = None if options.backend == "cpu" else h
                kept = sig.SLSTMSaved._make((R, *state[:3], flags, None, gates, cells, kept_h))
                incoming = sig.SLSTMIncoming(None if dh is None else dh[:, steps], *dstate)
                dx, dR_part, db_part, *dstate, dm0 = BACKWARD(x, incoming, kept, backward_options)
                dxs.append(dx.to(x.dtype))
                dR, db = dR + dR_part, db + db_part
            weights = torch.cat(dxs[::-1], 1), dR.to(R.dtype), db if b is None else db.to(b.dtype)
        return None, None, *returned("slstm", (*weights, *dstate, dm0), ctx.needs_input_grad[2:])


def _chunks(S: int, every: int) -> list[slice]:
    return [slice(start, start + every) for start in range(0, S, every)]


def slstm(operands: sig.SLSTMOperands, options: sig.SLSTMOptions, checkpoint_every: int | None) -> tuple[Tensor, State]:
    """Validated operands of `functional.slstm`; returns h and the final h, c, n, m (m without gradient)."""
    x = operands.x
    refuse_torch_func("slstm")
    if not differentiated(*operands):
        h, *last, _, _ = FORWARD(x, operands, options)
    elif checkpoint_every is not None and checkpoint_every < x.shape[1] and forward_ad._current_level < 0:
        h, *last = _CheckpointedSLSTM.apply(checkpoint_every, options, *operands)  # type: ignore[no-untyped-call]
    elif must_dispatch(x):
        h, *last, _, _ = FORWARD.overload(*operands, *options)
    else:
        h, *last, _, _ = _SLSTM.apply(FORWARD.direct, options, *operands)  # type: ignore[no-untyped-call]
    return h, tuple(last)


def slstm_step(operands: sig.SLSTMOperands, options: sig.SLSTMOptions) -> tuple[Tensor, State]:
    """Validated operands of `functional.slstm_step` with an S axis of 1, without gradients; returns h and the new h, c, n, m."""
    if must_dispatch(operands.x):
        refuse_torch_func("slstm_step")
        h, *last, _, _ = FORWARD.overload(*operands, *options)
    else:
        h, *last, _, _ = _forward_impl(operands, options, single_step=True)
    return h.squeeze(1), tuple(last)
