"""The torch.library namespace of the private ops, which torch.compile, export and checkpointing see."""

from __future__ import annotations

import functools
import itertools
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("xlstm_cuda", "DEF")
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}  #: by the op's name, for tests that stand between an op and its device

_SCHEMA_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", float: "float", str: "str", bool: "bool", int | None: "int?",
}  # fmt: skip


def _declared(fields: type) -> str:
    return ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in typing.get_type_hints(fields).items())


def _declared_results(fields: type) -> str:
    return ", ".join(f"Tensor {name}" for name in typing.get_type_hints(fields))


class Op:
    """One op of the library. Its schema is made of NamedTuples, and its functions are given these, not flat lists.

    overload: the op as PyTorch sees it; it takes the fields of `takes`, one after the other.
    direct: the same by its implementation, on the groups, for eager calls, where the dispatcher would cost more than it gives.
        A result that is None there is an empty tensor of the op: the schema of an op has no results that may be missing, and to
        make a tensor for nobody takes a microsecond.
    """

    def __init__(self, name: str, takes: Sequence[type], gives: type, impl: Callable[..., Any], fake: Callable[..., Any]) -> None:
        """
        takes: the groups of arguments, NamedTuples. gives: the results, a NamedTuple of tensors.
        impl: the computation on the groups; its results never alias an argument. Autocast is off inside: it has decided its
            dtypes.
        fake: the same on tensors without data: shapes, dtypes and devices of the results.
        """
        self.name, self.takes = name, takes

        @functools.wraps(impl)
        def direct(*groups: Any) -> Any:
            with torch._C._DisableAutocast():
                return impl(*groups)

        def computed(*args: Any) -> tuple[Tensor, ...]:
            groups = self.split(args)
            results = direct(*groups)
            if any(result is None for result in results):
                results = (empty if result is None else result for result, empty in zip(results, fake(*groups)))
            return tuple(results)

        self.direct: Callable[..., Any] = direct
        IMPLEMENTATIONS[name] = computed
        schema = f"({', '.join(map(_declared, takes))}) -> ({_declared_results(gives)})"
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, computed, "CompositeExplicitAutograd")
        torch.library.register_fake(f"xlstm_cuda::{name}", lambda *args: tuple(fake(*self.split(args))), lib=LIBRARY)
        self.overload: Callable[..., Any] = getattr(torch.ops.xlstm_cuda, name).default

    def __call__(self, like: Tensor, *groups: Any) -> Any:
        """Runs the op on operands such as `like`: itself where somebody has to see it, else its implementation."""
        return self.overload(*itertools.chain(*groups)) if must_dispatch(like) else self.direct(*groups)

    def in_backward(self, like: Tensor, *groups: Any) -> Any:
        """`__call__` without a graph of its own. Only create_graph=True leaves one to be switched off, which is not free."""
        if not torch.is_grad_enabled():
            return self(like, *groups)
        with torch.no_grad():
            return self(like, *groups)

    def split(self, args: Sequence[Any]) -> list[Any]:
        """The groups of a flat list of arguments."""
        groups, start = [], 0
        for group in self.takes:
            end = start + len(group._fields)  # type: ignore[attr-defined]
            groups.append(group(*args[start:end]))
            start = end
        return groups

    def differentiate(self, call: Callable[..., Any]) -> None:
        """Gives the op its gradient: ``call(run, *groups)`` has the results of ``run(*groups)``, and autograd knows about them.

        Everything that calls the op itself gets it: exported, traced and functionalised programs, compilers, torch.func.
        """
        overload: Any = self.overload

        def autograd(keyset: Any, *args: Any) -> Any:
            def below(*groups: Any) -> Any:
                with torch._C._AutoDispatchBelowAutograd():
                    return overload.redispatch(keyset & torch._C._after_autograd_keyset, *itertools.chain(*groups))

            tensors = (x for x in args if isinstance(x, Tensor))
            groups = self.split(args)
            return call(below, *groups) if differentiated(*tensors) else below(*groups)

        LIBRARY.impl(self.name, autograd, "Autograd", with_keyset=True)


def differentiated(*operands: Tensor | None) -> bool:
    """Whether a call with these operands has to be known to autograd, of either mode."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for x in operands:
            if x is not None and x.requires_grad:
                return True
    return False


def must_dispatch(*operands: Tensor) -> bool:
    """Whether the op itself has to be called: by a compiler, in a mode (fake tensors, flop counting), inside torch.func, on a
    tensor subclass. Eager calls otherwise run the implementation, because the op's dispatch costs more than a decoding step."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if torch._C._are_functorch_transforms_active():
        return True
    for x in operands:
        if type(x) is not Tensor and not isinstance(x, torch.nn.Parameter):
            return True
    return False


def refuse_torch_func(cell: str) -> None:
    """RuntimeError inside a transform of torch.func other than functionalize: autograd.Function has none of them."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    innermost = torch._C._functorch.peek_interpreter_stack()
    if innermost is not None and innermost.key() != torch._C._functorch.TransformType.Functionalize:
        raise RuntimeError(
            f"xlstm_cuda: {cell}: transforms of torch.func (grad, vmap, forward mode AD) are not supported by the kernels; use"
            " backend='reference', or torch.autograd.grad"
        )


def refuse_forward_mode(cell: str) -> Any:
    """The jvp of an autograd.Function that has none."""

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(f"xlstm_cuda: {cell}: forward mode AD is not supported by the kernels; use backend='reference'")

    return staticmethod(jvp)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: str, anchor: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.cell = cell
        return tuple(None if g is None else g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"xlstm_cuda: {ctx.cell}: double backward is not supported by the kernels; use backend='reference', which autograd"
            " differentiates"
        )


def differentiable_once(cell: str, gradients: Sequence[Any]) -> Sequence[Any]:
    """What a backward returns: under create_graph=True, gradients whose own backward raises.

    `once_differentiable` would not do: it lets a gradient penalty pass with silently missing terms, because an incoming gradient
    that is a constant makes it return constants. The anchor makes the results require a gradient whatever the operands do.
    """
    if not torch.is_grad_enabled():
        return gradients
    anchor = torch.empty(0, device=gradients[0].device, requires_grad=True)
    marked: Sequence[Any] = _Once.apply(cell, anchor, *gradients)  # type: ignore[no-untyped-call]
    return marked


def returned(cell: str, gradients: Sequence[Any], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The end of a backward: those gradients that autograd asks for, and None for the operands behind them."""
    gradients = differentiable_once(cell, gradients)
    return *(g if need else None for g, need in zip(gradients, needed)), *(None,) * (len(needed) - len(gradients))
