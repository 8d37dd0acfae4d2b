"""The model in several processes: a replica in each (DistributedDataParallel), or in shards (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from .. import xLSTMLMModel
from .device import Device
from .distributed import World
from .engines import Alone, Weights
from .errors import UsageError


class Spread(Alone):
    """A model in several processes; torch.distributed.checkpoint gathers it and hands it out."""

    world: World

    def weights(self) -> dict[str, Tensor]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.runner, options=options))

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        if not optimizer.state:  # before the first step; asked now, PyTorch would take one to see what a state looks like
            return optimizer.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_optimizer_state_dict(self.runner, optimizer, options=options)
        return _numbered(whole) if self.world.first else {}

    def restore(self, optimizer: torch.optim.Optimizer, weights: Weights, moments: Mapping[str, Any]) -> None:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.runner, dict(weights), options=options)
        if self.world.tell(lambda: bool(moments["state"])):
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            named = _named(moments, [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups])
            own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            set_optimizer_state_dict(self.runner, optimizer, named, options=options)
            for group, kept in zip(optimizer.param_groups, own):
                group.update(kept)  # handed out, a tuple would have become a list


class Replicas(Spread):
    """The whole model in every process; the gradients are averaged while the backward pass runs."""

    kind = "replicas"

    def __init__(self, build: Callable[[], xLSTMLMModel], device: Device, world: World) -> None:
        super().__init__(build, device)
        self.world = world
        own = None if device.device.index is None else [device.device]
        self._replica = self.runner = DistributedDataParallel(self.model, device_ids=own, gradient_as_bucket_view=True)
        self._settle(device)

    def _settle(self, device: Device) -> None:
        """The first backward pass decides in which order gradients are summed from the second on, and in which groups.

        Taken here for nothing, it leaves one order for a whole run, where a resumed run would have another in its first step.
        """
        state = device.random_state()
        self.runner(torch.zeros(1, 1, dtype=torch.int64, device=device.device), backend=device.backend).sum().backward()
        self.runner.zero_grad(set_to_none=True)
        device.set_random_state(state)

    def exchanging(self, exchange: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if exchange else self._replica.no_sync()


class Shards(Spread):
    """Each process holds its part of weights, gradients and moments, and gathers the weights of a block where it needs them.

    In bfloat16 the blocks and the head are gathered so, the gradients are summed in float32, and embedding, last norm and the
    residual stream stay float32, as under autocast.
    """

    kind = "shards"

    def __init__(self, build: Callable[[], xLSTMLMModel], device: Device, world: World, dtype: str) -> None:
        try:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        except ImportError:
            raise UsageError("--shard: expected PyTorch 2.6 or newer") from None
        self.world = world
        whole = build() if world.first else None
        with torch.device("meta"):
            self.model = build()
        mesh = distributed.init_device_mesh(device.device.type, (world.size,))
        policy = MixedPrecisionPolicy()
        if dtype == "bfloat16":
            policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in self.model.xlstm_block_stack.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.model.lm_head, mesh=mesh, mp_policy=policy)
        self._sharded = fully_shard(self.model, mesh=mesh)
        self.runner = self.model
        self.model.to_empty(device=device.device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, whole.state_dict() if whole else {}, options=options)

    def own(self) -> Iterator[Tensor]:
        return (cast(Any, weight).to_local() for weight in self.model.parameters())

    def exchanging(self, exchange: bool) -> contextlib.AbstractContextManager[Any]:
        self._sharded.set_requires_gradient_sync(exchange)
        return contextlib.nullcontext()


def _numbered(moments: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with parameters by name, as its own state_dict has it: by number."""
    numbers = {name: number for number, name in enumerate(name for group in moments["param_groups"] for name in group["params"])}
    return {
        "state": {numbers[name]: moments["state"][name] for name in numbers},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in moments["param_groups"]
        ],
    }  # fmt: skip


def _named(moments: Mapping[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """The other way; ``names`` are the parameters' of each group. Empty where ``moments`` is."""
    if not moments:
        return {}
    every = [name for group in names for name in group]
    return {
        "state": {every[number]: state for number, state in moments["state"].items()},
        "param_groups": [{**group, "params": own} for group, own in zip(moments["param_groups"], names)],
    }
