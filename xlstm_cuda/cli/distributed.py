"""The processes that train one model together, as torchrun starts them: who is who, what one tells the others, how they end.

Only the first process writes to the screen and to the run folder. However many of them fail, one says why: the first to ask.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from .device import Device
from .errors import CommandError, SaidElsewhere, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # for what the first process does alone: it may tokenize for hours, and its end is noticed
LOST = r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe"


class World:
    """One process of several, or the only one: number ``rank`` of ``size``, ``local_rank`` of ``local_size`` on its machine."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    @property
    def launched(self) -> bool:
        """Whether torchrun started the process; there may still be only one."""
        return False

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, device: Device, name: str) -> Device:
        """This process's device, where ``name`` was asked for."""
        return device

    def tell(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process. Where making it fails, all end."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The value of every process, in every process."""
        return [value]

    def mean(self, value: Tensor) -> Tensor:
        """Of the tensors of all processes."""
        return value

    def sum(self, value: float) -> float:
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process. All processes ask at the same point."""
        return flag

    def agree(self, facts: Mapping[str, Any]) -> None:
        """CommandError when a process has another value for one of these facts; None does not count."""

    def has_lost_another(self, error: BaseException) -> bool:
        """Whether this is how the end of another process shows."""
        return False


ALONE = World()


class Launched(World):
    """A process that torchrun, or another program that sets the same variables, has started."""

    def __init__(self) -> None:
        self.rank, self.size = _number("RANK"), _number("WORLD_SIZE")
        self.local_rank, self.local_size = _number("LOCAL_RANK", self.rank), _number("LOCAL_WORLD_SIZE", self.size)
        if not distributed.is_available() or not distributed.is_gloo_available():
            raise CommandError("this PyTorch cannot train in several processes: it was built without gloo")
        nccl = torch.cuda.is_available() and distributed.is_nccl_available()
        try:
            self._store, _, _ = next(distributed.rendezvous("env://"))
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if nccl else "gloo", store=self._store, rank=self.rank, world_size=self.size
            )
        except (RuntimeError, ValueError) as error:
            raise CommandError(f"the {self.size} processes did not find each other: {_one_line(error)}") from None
        self._store.set_timeout(PATIENCE)
        self._told = 0

    @property
    def launched(self) -> bool:
        return True

    def own(self, device: Device, name: str) -> Device:
        if device.device.type != "cuda":
            return device
        if not distributed.is_nccl_available():
            raise CommandError("this PyTorch cannot train on several GPUs: it was built without NCCL")
        if device.device.index is not None and self.size > 1:
            raise UsageError(f"--device: got {name}, expected cuda: each of {self.size} processes takes a GPU of its own")
        if self.local_size > torch.cuda.device_count():
            here = f"got {self.local_size} processes on this machine"
            raise CommandError(f"{here}, expected at most one for each GPU, {torch.cuda.device_count()}")
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return Device(own, device.backend)

    def tell(self, make: Callable[[], T]) -> T:
        self._told += 1
        name = f"told/{self._told}"
        if not self.first:
            done, value = pickle.loads(self._store.get(name))
            if not done:
                raise SaidElsewhere(value)
            return value
        try:
            value = make()
        except BaseException as error:
            self._store.set(name, pickle.dumps((False, 2 if isinstance(error, UsageError) else 1)))
            raise
        self._store.set(name, pickle.dumps((True, value)))
        return value

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def mean(self, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total)

    def any(self, flag: bool) -> bool:
        found = torch.tensor(int(flag))
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return bool(found)

    def agree(self, facts: Mapping[str, Any]) -> None:
        others = self.gather(dict(facts))
        for name in facts:
            known = [(rank, other[name]) for rank, other in enumerate(others) if other[name] is not None]
            for rank, value in known:
                if value != known[0][1]:
                    first = f"process {known[0][0]} has {known[0][1]}"
                    raise CommandError(f"the processes of this run differ in {name}: {first}, process {rank} has {value}")

    def has_lost_another(self, error: BaseException) -> bool:
        if isinstance(error, distributed.DistError):
            return True
        return isinstance(error, RuntimeError) and re.search(LOST, str(error), re.IGNORECASE) is not None

    def may_speak(self) -> bool:
        """True in the first process that asks, once."""
        try:
            return self._store.add("spoken", 1) == 1
        except RuntimeError:  # the process that kept the count is gone
            return True


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """This process's place among those of the run, inside the block; whatever ends it early is said by one of them."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    world = Launched()
    try:
        with _quiet(not world.first):
            yield world
    except SaidElsewhere:
        raise
    except BaseException as error:
        if not world.may_speak():
            raise SaidElsewhere(2 if isinstance(error, UsageError) else 1) from None
        if world.has_lost_another(error):
            raise CommandError("another process of this run has ended") from None
        raise
    distributed.destroy_process_group()


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Where ``quiet``, nothing reaches standard output."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _number(name: str, default: int | None = None) -> int:
    """From the environment."""
    value = os.environ.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CommandError(f"{name}: got {value!r}, expected a number, as torchrun sets it") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def code_digest() -> str:
    """Recognises this package's Python code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
