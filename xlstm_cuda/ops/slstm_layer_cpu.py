"""An sLSTM layer on a CPU, input projection and recurrence, as one node (csrc/cpu/slstm_layer.h).

What the projection adds to the gates, four times the hidden state, is made for a few steps at a time and never held whole, nor is
its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..native import _C
from .launch import ABSENT, CPUCall, SLSTMShape
from .library import differentiated, must_dispatch, refuse_forward_mode, returned
from .slstm_cpu import saved_shapes

_FORWARD = {torch.float32: _C.slstm_layer_forward_cpu_float32, torch.float64: _C.slstm_layer_forward_cpu_float64}
_BACKWARD = {torch.float32: _C.slstm_layer_backward_cpu_float32, torch.float64: _C.slstm_layer_backward_cpu_float64}
LEFT_TO_LIBRARIES = ("baseline",)  #: instruction sets with which PyTorch's own products are faster
_FEWEST_TOKENS = 32  #: below, laying out the weights for a product costs more than the product

State = tuple[Tensor, ...]  # h, c, n, m, each (B, NH, DH)


class SLSTMLayerOperands(NamedTuple):
    """H = NH DH units, F features."""

    input: Tensor  #: (B, S, F)
    W: Tensor  #: (4 H, F)
    R: Tensor  #: (4, NH, DH, DH) [gate, head, out, in]
    b: Tensor | None  #: (4 H)
    h0: Tensor | None = None  #: (B, NH, DH), and so c0, n0, m0
    c0: Tensor | None = None
    n0: Tensor | None = None
    m0: Tensor | None = None
    reset: Tensor | None = None  #: bool (B, S)


def usable(operands: SLSTMLayerOperands) -> bool:
    """Whether `slstm_layer` takes these operands; compilers, modes and autocast need PyTorch's operators."""
    given = [one for one in operands if one is not None]
    if must_dispatch(*given) or torch.is_autocast_enabled("cpu") or not all(one.is_cpu for one in given):
        return False
    input, W, R, b, *_ = operands
    dtype, (B, S, F), (_, NH, DH, _) = input.dtype, input.shape, R.shape
    if (
        dtype not in _FORWARD
        or _C.cpu_isa() in LEFT_TO_LIBRARIES
        or B * S < _FEWEST_TOKENS
        or F % _C.UNIT_PADDING
        or DH % _C.UNIT_PADDING
    ):
        return False
    return W.shape == (4 * NH * DH, F) and all(one is None or one.dtype is dtype for one in (W, R, b))


def slstm_layer(operands: SLSTMLayerOperands, forget_gate: str) -> tuple[Tensor, State]:
    """Operands of a layer that has checked them -> h (B, S, NH, DH), and h, c, n, m after the last step (m without gradient)."""
    if differentiated(*operands):
        h, *last = _SLSTMLayer.apply(forget_gate, *operands)  # type: ignore[no-untyped-call]
    else:
        h, *last = _forward(operands, forget_gate, save=False)[:5]
    return h, tuple(last)


class _SLSTMLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forget_gate: str, *args: Any) -> tuple[Tensor, ...]:
        operands = SLSTMLayerOperands(*args)
        *results, gates, cells = _forward(operands, forget_gate, save=True)
        ctx.save_for_backward(*operands, gates, cells)
        ctx.forget_gate = forget_gate
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(results[4])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_last: Any, dc_last: Any, dn_last: Any, _: None) -> Any:
        *args, gates, cells = ctx.saved_tensors  # read once: activation checkpointing gives them out only once
        with torch.no_grad():
            gradients = _backward((dh, dh_last, dc_last, dn_last), SLSTMLayerOperands(*args), gates, cells, ctx.forget_gate)
        return None, *returned("slstm", gradients, ctx.needs_input_grad[1:])

    jvp = refuse_forward_mode("slstm")


def _fields(call: CPUCall, operands: SLSTMLayerOperands, forget_gate: str) -> dict[str, Any]:
    """What forward and backward share."""
    input, W, R, _, h0, c0, n0, _, reset = operands
    (B, S, F), (_, NH, DH, _), dtype = input.shape, R.shape, input.dtype
    flags = call.elements(None if reset is None else reset.unsqueeze(-1), torch.bool)
    return {
        "shape": SLSTMShape(B, S, NH, DH, 0, flags, forget_gate), "R": call.address(R, dtype),
        "h0": call.address(h0, dtype), "c0": call.address(c0, dtype), "n0": call.address(n0, dtype),
        "F": F, "input": call.view(input.unsqueeze(2), dtype), "W": call.address(W, dtype), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _forward(operands: SLSTMLayerOperands, forget_gate: str, save: bool) -> tuple[Tensor, ...]:
    """h, h, c, n, m after the last step, and gates and cells for backward."""
    (B, S, _), (_, NH, DH, _), dtype = operands.input.shape, operands.R.shape, operands.input.dtype
    call = CPUCall()
    h = call.empty(B, S, NH, DH, dtype=dtype)
    last = [h.new_empty((B, NH, DH)) for _ in range(4)]
    gates, cells = map(h.new_empty, saved_shapes(B, S, NH, DH) if save else ((0,), (0,)))
    h_last, c_last, n_last, m_last = map(call.result, last)
    _FORWARD[dtype](
        **_fields(call, operands, forget_gate), x=ABSENT, x_gate_stride=0, b=call.address(operands.b, dtype),
        m0=call.address(operands.m0, dtype), h=call.result(h), h_last=h_last, c_last=c_last, n_last=n_last, m_last=m_last,
        saved_gates=call.result(gates) if save else 0, saved_cells=call.result(cells) if save else 0, single_step=False,
    )  # fmt: skip
    return h, *last, gates, cells


def _backward(
    incoming: tuple[Tensor | None, ...], operands: SLSTMLayerOperands, gates: Tensor, cells: Tensor, forget_gate: str
) -> tuple[Tensor, ...]:
    """Gradients of the operands but reset."""
    input, W, R = operands[:3]
    (B, _, _), (_, NH, DH, _), dtype = input.shape, R.shape, input.dtype
    call = CPUCall()
    dh, *dlast = incoming
    dh_last, dc_last, dn_last = (call.address(one, dtype) for one in dlast)
    dinput, dW, dR = (call.empty(*one.shape, dtype=dtype) for one in (input, W, R))
    db_rows = call.empty(B, 4 * NH * DH, dtype=dtype)
    first = [call.empty(B, NH, DH, dtype=dtype) for _ in range(4)]
    dh0, dc0, dn0, dm0 = map(call.result, first)
    _BACKWARD[dtype](
        **_fields(call, operands, forget_gate), saved_gates=call.address(gates, dtype), saved_cells=call.address(cells, dtype),
        dh=call.view(dh, dtype), dh_last=dh_last, dc_last=dc_last, dn_last=dn_last, dx=0, h_prev=0,
        db_rows=call.result(db_rows), dh0=dh0, dc0=dc0, dn0=dn0, dm0=dm0,
        dinput=call.result(dinput), dW=call.result(dW), dR=call.result(dR),
    )  # fmt: skip
    return dinput, dW, dR, db_rows.sum(0), *first
