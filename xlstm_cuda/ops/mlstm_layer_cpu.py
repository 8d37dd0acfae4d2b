"""An mLSTM layer between its two projections on a CPU: convolution, q, k, v, gates, recurrence, norm, skip and gate as one node.

The passes around the recurrence are those of csrc/cpu/mlstm_layer.h. Backward computes q, k, v and the gates once more, so that a
layer keeps (a, g), h and one number per step and head.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..native import _C
from . import mlstm_cpu
from .launch import CPUCall
from .library import differentiated, must_dispatch, refuse_forward_mode, returned
from .signatures import MLSTMIncoming, MLSTMOperands, MLSTMOptions, MLSTMSaved

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_PASSES = {
    (name, dtype): getattr(_C, f"mlstm_layer_{name}_cpu_{spelled}")
    for name in ("inputs", "output", "output_backward", "inputs_backward")
    for dtype, spelled in _DTYPES.items()
}
_WIDEST = 64  #: features of a block of q, k, v up to which our products are as fast as a library's
_VECTOR = 16  #: features of the widest vector

State = tuple[Tensor, Tensor, Tensor]


class MLSTMLayerWeights(NamedTuple):
    """As the modules have them; NH heads, K taps, I features in blocks of ``width``."""

    conv_weight: Tensor  #: (I, 1, K)
    conv_bias: Tensor | None  #: (I)
    q_weight: Tensor  #: (I / width, width out, width in), and so k and v
    k_weight: Tensor
    v_weight: Tensor
    q_bias: Tensor | None  #: (I)
    k_bias: Tensor | None
    v_bias: Tensor | None
    i_weight: Tensor  #: (NH, 3 I), and so f
    f_weight: Tensor
    i_bias: Tensor  #: (NH)
    f_bias: Tensor
    norm_weight: Tensor | None  #: (I)
    skip: Tensor  #: (I)


@functools.cache
def weight_shapes(I: int, NH: int, K: int, width: int) -> tuple[tuple[int, ...], ...] | None:
    """Of the fields of `MLSTMLayerWeights`; None where csrc/cpu/mlstm_layer.h does not take such a layer."""
    narrow = 1 <= width <= _WIDEST and width & (width - 1) == 0 and I % width == 0
    if not narrow or I % _VECTOR or I % NH or I // NH % _VECTOR or not 1 <= K <= _C.MOST_TAPS:
        return None
    block, inner, gate = (I // width, width, width), (I,), (NH, 3 * I)
    return ((I, 1, K), inner, block, block, block, inner, inner, inner, gate, gate, (NH,), (NH,), inner, inner)


def usable(up: Tensor, weights: MLSTMLayerWeights, sizes: tuple[int, int, int, int], *states: Tensor | None) -> bool:
    """Whether `mlstm_layer` takes these operands; compilers, modes and autocast need PyTorch's operators.

    sizes: I, NH, K, width, as the modules have them.
    """
    dtype, shapes = up.dtype, weight_shapes(*sizes)
    if dtype not in _DTYPES or not up.is_cpu or torch.is_autocast_enabled("cpu") or must_dispatch(up):
        return False
    if shapes is None or weights.conv_bias is None or up.shape[-1] != 2 * sizes[0]:
        return False
    for one, shape in zip(weights, shapes):
        if one is not None and (one.dtype is not dtype or not one.is_cpu or one.shape != shape):
            return False
    return all(one is None or one.is_cpu for one in states)


def mlstm_layer(
    up: Tensor,
    weights: MLSTMLayerWeights,
    held: Tensor | None,
    state: State | None,
    cu_seqlens: Tensor | None,
    norm_eps: float,
    return_state: bool,
) -> tuple[Tensor, State]:
    """(a, g) = up (B, S, 2 I) -> y (B, S, I) and the last state, C (N, NH, DH, DH), n, m, each None unless asked for.

    held: the K - 1 inputs (B, K - 1, I) before the first step, without cu_seqlens; None is zeros.
    """
    C0, n0, m0 = state or (None, None, None)
    operands = up, held, C0, n0, m0, *weights
    if differentiated(*operands):
        y, C, n, m = _MLSTMLayer.apply(cu_seqlens, norm_eps, return_state, *operands)  # type: ignore[no-untyped-call]
    else:
        y, C, n, m, _, _ = _forward(cu_seqlens, norm_eps, return_state, *operands)
    return y, (C, n, m)


class _MLSTMLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cu_seqlens: Tensor | None, norm_eps: float, return_state: bool, *operands: Any) -> tuple[Any, ...]:
        y, C, n, m, h, dot = _forward(cu_seqlens, norm_eps, return_state, *operands)
        ctx.save_for_backward(cu_seqlens, h, dot, *operands)
        ctx.norm_eps = norm_eps
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(() if m is None else (m,)))
        return y, C, n, m

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dC: Tensor | None, dn: Tensor | None, _: None) -> Any:
        cu_seqlens, h, dot, *operands = ctx.saved_tensors  # read once: activation checkpointing gives them out only once
        with torch.no_grad():
            gradients = _backward(dy, dC, dn, h, dot, cu_seqlens, ctx.norm_eps, *operands)
        return None, None, None, *returned("mlstm", gradients, ctx.needs_input_grad[3:])

    jvp = refuse_forward_mode("mlstm")


def run_pass(name: str, dtype: torch.dtype, **fields: Any) -> None:
    """One pass of csrc/cpu/mlstm_layer.h."""
    _PASSES[name, dtype](**fields)


class _Layer:
    """One call of the passes on a layer's operands."""

    def __init__(self, up: Tensor, held: Tensor | None, cu_seqlens: Tensor | None, norm_eps: float, weights: MLSTMLayerWeights):
        self.call = CPUCall()
        self.dtype = up.dtype
        self.B, self.S, twice = up.shape
        self.I, self.NH = twice // 2, weights.i_weight.shape[0]
        address, dtype, K = self.call.address, self.dtype, weights.conv_weight.shape[-1]
        starts = None if cu_seqlens is None else _starts(cu_seqlens, self.S)
        self.fields: dict[str, Any] = {
            "B": self.B, "S": self.S, "I": self.I, "NH": self.NH, "K": K, "width": weights.q_weight.shape[-1],
            "up": self.call.view(up.unsqueeze(2), dtype),
            "starts": self.call.elements(None if starts is None else starts.unsqueeze(-1), torch.bool),
            "held": address(held, dtype) if K > 1 else 0,
            **{name: address(weight, dtype) for name, weight in zip(weights._fields, weights)},
            "k_scale": (self.I // self.NH) ** -0.5, "norm_eps": norm_eps, "threads": torch.get_num_threads(),
        }  # fmt: skip
        self._alive = starts

    def run(self, name: str, **fields: Any) -> None:
        run_pass(name, self.dtype, **self.fields, **fields)

    def empty(self, *shape: int) -> Tensor:
        return self.call.empty(*shape, dtype=self.dtype)

    def inputs(self) -> tuple[Tensor, ...]:
        """q, k, v (B, S, NH, DH), i, f (B, S, NH)."""
        heads = self.B, self.S, self.NH, self.I // self.NH
        results = *(self.empty(*heads) for _ in "qkv"), *(self.empty(*heads[:3]) for _ in "if")
        self.run("inputs", **{name: self.call.result(x) for name, x in zip("qkvif", results)})
        return results

    def options(self, return_state: bool) -> MLSTMOptions:
        """1/sqrt(DH) is counted in k, so that the state has the official form."""
        return MLSTMOptions(1.0, "exp", True, 1e-6, "cpu", return_state=return_state)


def _starts(cu_seqlens: Tensor, S: int) -> Tensor:
    """bool (1, S), True at the first step of every sequence."""
    starts = cu_seqlens.new_zeros(S + 1, dtype=torch.bool)
    starts[cu_seqlens.long().clamp(0, S)] = True
    return starts[:S].unsqueeze(0)


def _forward(
    cu_seqlens: Tensor | None, norm_eps: float, return_state: bool, up: Tensor, held: Tensor | None,
    C0: Tensor | None, n0: Tensor | None, m0: Tensor | None, *weights: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """y, C, n, m (None unless asked for), and h and s q.n for backward."""
    layer = _Layer(up, held, cu_seqlens, norm_eps, MLSTMLayerWeights(*weights))
    operands = MLSTMOperands._make((*layer.inputs(), C0, n0, m0, cu_seqlens))
    h, C, n, m, dot = mlstm_cpu.forward(operands, layer.options(return_state))
    del operands  # q, k, v, before y is there
    y = layer.empty(layer.B, layer.S, layer.I)
    layer.run("output", h=layer.call.result(h), y=layer.call.result(y))
    return y, C, n, m, h, dot


def _backward(
    dy: Tensor | None, dC: Tensor | None, dn: Tensor | None, h: Tensor, dot: Tensor, cu_seqlens: Tensor | None, norm_eps: float,
    up: Tensor, held: Tensor | None, C0: Tensor | None, n0: Tensor | None, m0: Tensor | None, *weights: Any,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of up, held, C0, n0, m0 and the weights."""
    layer = _Layer(up, held, cu_seqlens, norm_eps, MLSTMLayerWeights(*weights))
    call, dtype, I = layer.call, layer.dtype, layer.I
    address, result, empty = call.address, call.result, layer.empty
    dy = empty(layer.B, layer.S, I).zero_() if dy is None else dy
    dup, dnorm_weight, dskip = empty(layer.B, layer.S, 2 * I), empty(I), empty(I)
    dh = torch.empty_like(h, memory_format=torch.contiguous_format)
    layer.run(
        "output_backward", h=address(h, dtype), dy=address(dy, dtype), dh=result(dh), dup=result(dup),
        dnorm_weight=result(dnorm_weight), dskip=result(dskip),
    )  # fmt: skip
    operands = MLSTMOperands._make((*layer.inputs(), C0, n0, m0, cu_seqlens))
    saved = MLSTMSaved(h, dot, None, None, None)
    dq, dk, dv, di, df, dC0, dn0, dm0 = mlstm_cpu.backward(MLSTMIncoming(dh, dC, dn), operands, saved, layer.options(True))
    del dh
    dheld = None if held is None else torch.zeros_like(held, memory_format=torch.contiguous_format)
    *of_weights, _, _ = weights
    dweights = [None if one is None else torch.empty_like(one, memory_format=torch.contiguous_format) for one in of_weights]
    layer.run(
        "inputs_backward", **{name: result(x) for name, x in zip("qkv", operands)},
        dq=result(dq), dk=result(dk), dv=result(dv), di=result(di), df=result(df), dy=address(dy, dtype), dup=result(dup),
        dheld=result(dheld), **{f"d{name}": result(one) for name, one in zip(MLSTMLayerWeights._fields, dweights)},
    )  # fmt: skip
    return dup, dheld, dC0, dn0, dm0, *dweights, None if weights[-2] is None else dnorm_weight, dskip
