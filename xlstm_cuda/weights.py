"""Weights as other libraries leave them: when a module must be called instead of its weights read, and how to fill any kind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

_HALF = (torch.bfloat16, torch.float16)
_PLAIN = (nn.Parameter, Tensor, type(None))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether reading the weights of a module is the same as calling it, so that several may be joined into one operation.

    False for another class (adapters, quantised layers, parametrisations, which all change it), for hooks, a ``forward`` of its
    own, and weights of a tensor subclass: then the module must be called.
    """
    return are_plain((module,), (kind,))


def are_plain(modules: Iterable[nn.Module], kinds: Iterable[type[nn.Module]]) -> bool:
    """`is_plain` of all of them, for less: a decoding step asks for every module of a block."""
    if _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks:
        return False
    for module, kind in zip(modules, kinds):
        if type(module) is not kind:
            return False
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "step" in own
        ):
            return False
        for weight in own["_parameters"].values():  # all() would double the time, which decoding steps pay
            if type(weight) not in _PLAIN:
                return False
    return True


def under_autocast(operand: Tensor) -> Tensor:
    """The operand; under autocast to the other half precision, in that one.

    Autocast casts for matmuls alone. torch.cat and the recurrences raise for the one half precision beside the other.
    """
    if operand.dtype not in _HALF:
        return operand
    device = operand.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return operand
    return operand.to(torch.get_autocast_dtype(device))


@torch.no_grad()
def fill_(weight: Tensor, values: Tensor) -> Tensor:
    """Copies values of the weight's whole shape into it; a distributed weight (DTensor) takes each rank's part of rank 0's."""
    if hasattr(weight, "placements"):
        from torch.distributed.tensor import distribute_tensor  # costs a second, which only distributed runs should pay

        values = distribute_tensor(values, weight.device_mesh, weight.placements)  # type: ignore[attr-defined]
    return weight.copy_(values)
