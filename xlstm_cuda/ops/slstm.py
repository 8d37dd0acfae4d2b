"""The sLSTM as torch ops with an exact backward (S1-S4 in csrc/slstm/README.md).

One forward and one backward op serve every kernel backend: `slstm_cpu` is the CPU's implementation, `slstm_kernels` that of the
CUDA kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import slstm_cpu, slstm_kernels
from .library import define, differentiable_once, must_dispatch

State = tuple[Tensor, ...]  # h, c, n, m, each (B, NH, DH)

_OPTIONAL_STATE = "Tensor? h0, Tensor? c0, Tensor? n0"
_ROWS = "Tensor? reset, Tensor? cu_seqlens"


def _forward_impl(x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, save, backend, single_step=False):
    operands = x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, save
    if backend == "cpu":
        return slstm_cpu.forward(*operands, single_step)
    return slstm_kernels.forward(*operands, backend, single_step)


def _forward_fake(x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, save, backend):
    B, S, _, NH, DH = x.shape
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = slstm_cpu.state_dtype(x.dtype)
    if backend == "cpu":
        shapes, dtypes = slstm_cpu.saved_shapes(B, S, NH, DH), (dtype, dtype)
    else:
        shapes, dtypes = slstm_kernels.saved_shapes(B, S, NH, DH), slstm_kernels.saved_dtypes(x.dtype)
    last = (x.new_empty((N, NH, DH), dtype=dtype) for _ in range(4))
    saved = (x.new_empty(shape if save else (0,), dtype=dtype) for shape, dtype in zip(shapes, dtypes))
    return x.new_empty((B, S, NH, DH)), *last, *saved


def _backward_impl(dh, dh_last, dc_last, dn_last, R, h0, c0, n0, reset, cu_seqlens, gates, cells, h, forget_gate, backend):
    operands = dh, dh_last, dc_last, dn_last, R, h0, c0, n0, reset, cu_seqlens, gates, cells
    if backend == "cpu":
        return slstm_cpu.backward(*operands, forget_gate)
    return slstm_kernels.backward(*operands, h, forget_gate, backend)


def _backward_fake(dh, dh_last, dc_last, dn_last, R, h0, c0, n0, reset, cu_seqlens, gates, cells, h, forget_gate, backend):
    B, S, NH = gates.shape[:3]
    DH = R.shape[-1]
    N = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shapes = [(4, NH, DH, DH), (4, NH, DH)] + [(N, NH, DH)] * 4
    dx = (cells if h is None else h).new_empty((B, S, 4, NH, DH))
    return dx, *(cells.new_empty(shape) for shape in shapes)


_forward = define(
    "slstm_forward",
    f"(Tensor x, Tensor R, Tensor? b, {_OPTIONAL_STATE}, Tensor? m0, {_ROWS}, str forget_gate, bool save, str backend)"
    " -> (Tensor h, Tensor h_last, Tensor c_last, Tensor n_last, Tensor m_last, Tensor gates, Tensor cells)",
    _forward_impl,
    _forward_fake,
)
_backward = define(
    "slstm_backward",
    f"(Tensor? dh, Tensor? dh_last, Tensor? dc_last, Tensor? dn_last, Tensor R, {_OPTIONAL_STATE}, {_ROWS},"
    " Tensor gates, Tensor cells, Tensor? h, str forget_gate, str backend)"
    " -> (Tensor dx, Tensor dR, Tensor db, Tensor dh0, Tensor dc0, Tensor dn0, Tensor dm0)",
    _backward_impl,
    _backward_fake,
)


class _SLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, save, backend):
        h, h_last, c_last, n_last, m_last, gates, cells = _forward(
            x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, save, backend
        )
        if save:
            # the CPU's backward rebuilds h from the cells
            ctx.save_for_backward(R, h0, c0, n0, reset, cu_seqlens, gates, cells, None if backend == "cpu" else h)
        ctx.options = forget_gate, backend
        ctx.dtypes = x.dtype, R.dtype, None if b is None else b.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(m_last)
        return h, h_last, c_last, n_last, m_last

    @staticmethod
    def backward(ctx: Any, dh, dh_last, dc_last, dn_last, dm_last):
        saved = ctx.saved_tensors  # read once: activation checkpointing gives them out only once
        with torch.no_grad():
            dx, dR, db, *dstate = _backward(dh, dh_last, dc_last, dn_last, *saved, *ctx.options)
            weights = [g if dtype is None else g.to(dtype) for g, dtype in zip((dx, dR, db), ctx.dtypes)]
        incoming = (dh, dh_last, dc_last, dn_last)
        gradients = differentiable_once("slstm", (*weights, *dstate), (*incoming, *saved))
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad)), None, None, None, None, None


class _CheckpointedSLSTM(torch.autograd.Function):
    """Keeps x and the state before every chunk of steps; backward runs forward again, chunk by chunk from the last one.

    A state hands over exactly, so the second run gives the bits of the first, and the gradients those of `_SLSTM` but for dR and
    db, whose sums over the steps are cut into chunks.
    """

    @staticmethod
    def forward(ctx: Any, x, R, b, h0, c0, n0, m0, reset, forget_gate, every, backend):
        state: tuple[Tensor | None, ...] = (h0, c0, n0, m0)
        parts, borders = [], []
        for steps in _chunks(x.shape[1], every):
            borders.append(state)
            flags = None if reset is None else reset[:, steps]
            h, *state, _, _ = _forward(x[:, steps], R, b, *state, flags, None, forget_gate, False, backend)
            parts.append(h)
        ctx.save_for_backward(x, R, b, reset, *(s for border in borders for s in border))
        ctx.options = forget_gate, every, backend
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(state[3])
        return torch.cat(parts, 1), *state

    @staticmethod
    def backward(ctx: Any, dh, dh_last, dc_last, dn_last, dm_last):
        saved = ctx.saved_tensors
        x, R, b, reset, *borders = saved
        forget_gate, every, backend = ctx.options
        dstate: Any = dh_last, dc_last, dn_last
        dR: Any = 0
        db: Any = 0
        dm0: Any = None
        dxs = []
        with torch.no_grad():
            for index, steps in reversed(list(enumerate(_chunks(x.shape[1], every)))):
                h0, c0, n0, m0 = borders[4 * index : 4 * index + 4]
                flags = None if reset is None else reset[:, steps]
                h, *_, gates, cells = _forward(x[:, steps], R, b, h0, c0, n0, m0, flags, None, forget_gate, True, backend)
                dx, dR_part, db_part, *dstate, dm0 = _backward(
                    None if dh is None else dh[:, steps], *dstate, R, h0, c0, n0, flags, None, gates, cells,
                    None if backend == "cpu" else h, forget_gate, backend,
                )  # fmt: skip
                dxs.append(dx.to(x.dtype))
                dR, db = dR + dR_part, db + db_part
            weights = torch.cat(dxs[::-1], 1), dR.to(R.dtype), db if b is None else db.to(b.dtype)
        incoming = (dh, dh_last, dc_last, dn_last)
        gradients = differentiable_once("slstm", (*weights, *dstate, dm0), (*incoming, *saved))
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad)), None, None, None, None


def _chunks(S: int, every: int) -> list[slice]:
    return [slice(start, start + every) for start in range(0, S, every)]


def slstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: State | None,
    reset: Tensor | None,
    cu_seqlens: Tensor | None,
    forget_gate: str,
    checkpoint_every: int | None,
    backend: str,
) -> tuple[Tensor, State]:
    """Validated operands of `functional.slstm`; returns h and the final h, c, n, m (m without gradient)."""
    differentiable = (x, R, b, *(state or (None,) * 4))
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    if save and checkpoint_every is not None and checkpoint_every < x.shape[1]:
        h, *last = _CheckpointedSLSTM.apply(*differentiable, reset, forget_gate, checkpoint_every, backend)
    else:
        h, *last = _SLSTM.apply(*differentiable, reset, cu_seqlens, forget_gate, save, backend)
    return h, tuple(last)


def slstm_step(x: Tensor, R: Tensor, b: Tensor | None, state: State, forget_gate: str, backend: str) -> tuple[Tensor, State]:
    """Validated operands of `functional.slstm_step`, without gradients; returns h and the new h, c, n, m."""
    h0, c0, n0, m0 = state
    x = x.unsqueeze(1)
    if must_dispatch(x):
        out, *last, _, _ = _forward(x, R, b, h0, c0, n0, m0, None, None, forget_gate, False, backend)
    else:
        out, *last, _, _ = _forward_impl(x, R, b, h0, c0, n0, m0, None, None, forget_gate, False, backend, single_step=True)
    return out.squeeze(1), tuple(last)
