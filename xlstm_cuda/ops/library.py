"""The torch.library namespace of the private ops, which torch.compile, export and checkpointing see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("xlstm_cuda", "DEF")
IMPLEMENTATIONS: dict[str, Callable] = {}  #: by the op's name, for tests that stand between an op and its device


def define(name: str, schema: str, impl: Callable, fake: Callable) -> Callable:
    """Registers ``xlstm_cuda::name`` for every device and returns its overload.

    Args:
        schema: arguments and results, e.g. ``"(Tensor x, float scale) -> Tensor"``.
        impl: the computation; its results never alias an argument. Autocast is off inside: it has decided its dtypes.
        fake: the same on tensors without data: shapes, dtypes and devices of the results.
    """

    @functools.wraps(impl)
    def without_autocast(*args: Any) -> Any:
        with torch._C._DisableAutocast():
            return impl(*args)

    IMPLEMENTATIONS[name] = without_autocast
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xlstm_cuda::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.xlstm_cuda, name).default


def must_dispatch(x: Tensor) -> bool:
    """Whether the op itself has to be called: by a compiler, in a mode (fake tensors, flop counting), on a tensor subclass.

    Decoding steps otherwise call the implementation, because the op's dispatch costs more than the step.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return type(x) is not Tensor and not isinstance(x, torch.nn.Parameter)


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.name}: double backward is not supported by the kernels; use backend='reference', which autograd differentiates"
        )


def differentiable_once(name: str, gradients: Sequence[Tensor], saved: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """What a backward returns under create_graph=True: gradients whose own backward raises.

    `once_differentiable` alone would let a gradient penalty pass with silently missing terms, because an incoming gradient that
    is a constant makes it return constants.
    """
    if not torch.is_grad_enabled():
        return gradients
    return _DifferentiableOnce.apply(name, len(gradients), *gradients, *(s for s in saved if s is not None))
