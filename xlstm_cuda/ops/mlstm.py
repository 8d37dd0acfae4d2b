"""The mLSTM as torch ops with an exact backward (M1-M6 in csrc/mlstm/README.md).

One forward and one backward op serve every kernel backend; `mlstm_cpu` is the CPU's implementation, `mlstm_kernels` that of
the CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..states import state_dtype
from . import mlstm_cpu, mlstm_kernels, mlstm_step_kernel
from .library import Op, differentiable_once, differentiated, must_dispatch, refuse_forward_mode, refuse_torch_func, returned
from .mlstm_cpu import EMPTY, State, state_shapes
from .signatures import (
    MLSTMGradients,
    MLSTMIncoming,
    MLSTMOperands,
    MLSTMOptions,
    MLSTMResults,
    MLSTMSaved,
    MLSTMToken,
    MLSTMTokenResults,
)

KERNEL_BACKENDS = ("cuda", "simt")


def _forward_impl(operands: MLSTMOperands, options: MLSTMOptions) -> MLSTMResults:
    if options.backend in KERNEL_BACKENDS:
        return mlstm_kernels.forward(operands, options)
    return mlstm_cpu.forward(operands, options)


def _forward_fake(operands: MLSTMOperands, options: MLSTMOptions) -> MLSTMResults:
    q, v, i = operands.q, operands.v, operands.i
    dtype = state_dtype(q)
    wanted = options.return_state or options.backend in KERNEL_BACKENDS
    shapes = state_shapes(q, v, operands.cu_seqlens) if wanted else EMPTY
    C, n, m = (q.new_empty(shape, dtype=dtype) for shape in shapes)
    dot = mlstm_kernels.empty_dot(i, dtype) if options.backend in KERNEL_BACKENDS else i.new_empty(i.shape, dtype=dtype)
    return MLSTMResults(v.new_empty(v.shape), C, n, m, dot)


def _backward_impl(incoming: MLSTMIncoming, operands: MLSTMOperands, saved: MLSTMSaved, options: MLSTMOptions) -> MLSTMGradients:
    if options.backend in KERNEL_BACKENDS:
        return mlstm_kernels.backward(incoming, operands, saved, options)
    return mlstm_cpu.backward(incoming, operands, saved, options)


def _backward_fake(incoming: MLSTMIncoming, operands: MLSTMOperands, saved: MLSTMSaved, options: MLSTMOptions) -> MLSTMGradients:
    q = operands.q
    gradients = [x.new_empty(x.shape) for x in operands[:5]]
    wanted = operands.C0 is not None or options.backend in KERNEL_BACKENDS
    shapes = state_shapes(q, operands.v, operands.cu_seqlens) if wanted else EMPTY
    return MLSTMGradients(*gradients, *(q.new_empty(shape, dtype=state_dtype(q)) for shape in shapes))


def _step_impl(token: MLSTMToken, options: MLSTMOptions) -> MLSTMTokenResults:
    return mlstm_step_kernel.step(token, options)


def _step_fake(token: MLSTMToken, options: MLSTMOptions) -> MLSTMTokenResults:
    h, C, n, m = (x.new_empty(x.shape) for x in (token.v, token.C, token.n, token.m))
    return MLSTMTokenResults(h, C, n, m)


FORWARD = Op("mlstm_forward", (MLSTMOperands, MLSTMOptions), MLSTMResults, _forward_impl, _forward_fake)
BACKWARD = Op(
    "mlstm_backward", (MLSTMIncoming, MLSTMOperands, MLSTMSaved, MLSTMOptions), MLSTMGradients, _backward_impl, _backward_fake
)
STEP = Op("mlstm_step", (MLSTMToken, MLSTMOptions), MLSTMTokenResults, _step_impl, _step_fake)


class _MLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], options: MLSTMOptions, *args: Any) -> tuple[Tensor | None, ...]:
        results, borders = run(MLSTMOperands(*args), options)
        ctx.save_for_backward(*args, results.h, results.dot, results.C, results.n, borders)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(results.dot, *(() if results.m is None else (results.m,)))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dC: Tensor | None, dn: Tensor | None, *_: None) -> Any:
        q, *saved = ctx.saved_tensors  # read once: activation checkpointing gives them out only once
        incoming, operands = MLSTMIncoming(dh, dC, dn), MLSTMOperands(q, *saved[:8])
        gradients = BACKWARD.in_backward(q, incoming, operands, MLSTMSaved(*saved[8:]), ctx.options)
        return None, None, *returned("mlstm", gradients, ctx.needs_input_grad[2:])

    jvp = refuse_forward_mode("mlstm")


def _eager(operands: MLSTMOperands, options: MLSTMOptions) -> tuple[MLSTMResults, Tensor | None]:
    """The results, and states for the backward that a result of the op could not be: how many depends on S."""
    if options.backend in KERNEL_BACKENDS:
        return FORWARD.direct(operands, options), None
    with torch._C._DisableAutocast():
        return mlstm_cpu.forward_kept(operands, options)


def _below(run: Callable[..., Any]) -> Callable[..., Any]:
    """The op itself in the place of `_eager`."""
    return lambda operands, options: (MLSTMResults(*run(operands, options)), None)


FORWARD.differentiate(lambda run, operands, options: _MLSTM.apply(_below(run), options, *operands))  # type: ignore[no-untyped-call]
BACKWARD.differentiate(lambda run, *groups: differentiable_once("mlstm", run(*groups)))
STEP.differentiate(lambda run, token, options: _one_step_of_a_sequence(token, options))


def mlstm(operands: MLSTMOperands, options: MLSTMOptions) -> tuple[Tensor, State]:
    """Validated operands of `functional.mlstm`; returns h and the final C, n, m (m without gradient)."""
    refuse_torch_func("mlstm")
    if must_dispatch(operands.q) or not differentiated(*operands):
        h, C, n, m, _ = FORWARD(operands.q, operands, options)
    else:
        h, C, n, m, _ = _MLSTM.apply(_eager, options, *operands)  # type: ignore[no-untyped-call]
    return h, (C, n, m)


def mlstm_step(token: MLSTMToken, options: MLSTMOptions) -> tuple[Tensor, State]:
    """Validated operands of `functional.mlstm_step`, without gradients; returns h and the new C, n, m."""
    if must_dispatch(token.q):
        refuse_torch_func("mlstm_step")
        if options.backend in KERNEL_BACKENDS:
            h, C, n, m = STEP.overload(*token, *options)
        else:
            h, C, n, m = _one_step_of_a_sequence(token, options)
        return h, (C, n, m)
    if options.backend in KERNEL_BACKENDS:
        h, C, n, m = mlstm_step_kernel.step(token, options)
        return h, (C, n, m)
    q, k, v, i, f, C, n, m = token
    return mlstm_cpu.step(q, k, v, i, f, (C, n, m), options)


def _one_step_of_a_sequence(token: MLSTMToken, options: MLSTMOptions) -> tuple[Tensor, ...]:
    """The same as the step, and with gradients."""
    q, k, v, i, f = (x.unsqueeze(1) for x in token[:5])
    h, C, n, m, _ = FORWARD.overload(q, k, v, i, f, token.C, token.n, token.m, None, *options)
    return h.squeeze(1), C, n, m
