"""The model in one process, and what training needs of it there; `spread` has the same for several processes.

Each engine gives and takes the whole weights and moments in the form of one process, so that any continues any other's run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import xLSTMLMModel
from .device import Device

Weights = Mapping[str, Tensor]


class Alone:
    """The model of one process. ``model`` is what the optimizer and validation see, ``runner`` what a training step calls.

    Args:
        build: makes the freshly initialised model on the CPU, after the seed was set.
    """

    kind = "one process"

    def __init__(self, build: Callable[[], xLSTMLMModel], device: Device) -> None:
        self.model = build().to(device.device)
        self.runner: nn.Module = self.model

    def exchanging(self, exchange: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and backward pass: whether its gradients and those before it are summed over the processes."""
        return contextlib.nullcontext()

    def own(self) -> Iterator[Tensor]:
        """What this process holds of the weights."""
        return iter(self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Whole, in the first process."""
        return self.model.state_dict()

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state_dict as of one process, in the first process."""
        return optimizer.state_dict()

    def restore(self, optimizer: torch.optim.Optimizer, weights: Weights, moments: Mapping[str, Any]) -> None:
        """Takes what `weights` and `moments` gave; what they did not give in the other processes is not looked at."""
        self.model.load_state_dict(weights)
        optimizer.load_state_dict(dict(moments))


def recompute(model: xLSTMLMModel) -> None:
    """From here on the backward pass computes each block's forward pass again, instead of keeping what it needs of it."""
    for block in model.xlstm_block_stack.blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)
