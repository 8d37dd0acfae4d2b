"""What a benchmark is made of: a case (a shape), its contenders, and one contender ready to run on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = Mapping[str, int]


class Unusable(Exception):
    """Why a contender cannot run here: not importable, no device, a shape it does not take."""


@dataclass
class Prepared:
    """A contender on inputs of one shape; the seed of the inputs is the same for every contender.

    forward: what is timed. Its result is a tensor, or a loss.
    leaves: what gradients are taken for, by the names of the truth; empty for inference.
    canonical: turns a result or gradient into the truth's layout and back; its own inverse.
    check: the tensors that the gate compares, where a forward call alone does not show them (decoding).
    state_bytes: what a sequence keeps between two tokens, for decoding.
    """

    forward: Callable[[], Tensor]
    leaves: dict[str, Tensor] = field(default_factory=dict)
    canonical: Callable[[Tensor], Tensor] = lambda x: x
    check: Callable[[], dict[str, Tensor]] | None = None
    state_bytes: int | None = None


def is_ours(name: str) -> bool:
    """Whether a contender of this name is part of xlstm_cuda."""
    return name.startswith(("xlstm_cuda", "mLSTM", "sLSTM"))


Build = Callable[[Shape, torch.device, torch.dtype], Prepared]


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    truth: the definition its numbers must agree with; None: it computes another function.
    against: whose time its own is divided by; None for what others are compared with.
    limits: the largest sizes at which it is worth waiting for; above them it is left out, and the table says so.
    """

    name: str
    build: Build
    truth: str | None = "exact"
    against: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)

    def too_slow(self, shape: Shape) -> str | None:
        """The reason to leave it out of a case of this shape."""
        over = [f"{axis} <= {limit}" for axis, limit in self.limits.items() if shape.get(axis, 0) > limit]
        return f"slow: measured only for {', '.join(over)}" if over else None


@dataclass(frozen=True)
class Case:
    """One shape of a suite.

    gate_shape: where outputs and gradients are compared with the float64 reference (a short piece of the same model).
    truths: the definitions by name, computed by the reference backend in float64.
    x_axis: the axis of the shape that the plots follow.
    tokens: how many tokens one call handles.
    slack: factor of the gate's bound, for models whose layers each round to 16 bits.
    """

    suite: str
    group: str
    shape: Shape
    gate_shape: Shape
    contenders: tuple[Contender, ...]
    truths: Mapping[str, Build]
    dtype: torch.dtype = torch.float32
    backward: bool = True
    x_axis: str = "S"
    measures_memory: bool = False
    slack: float = 1.0

    @property
    def name(self) -> str:
        sizes = " ".join(f"{axis}{size}" for axis, size in self.shape.items())
        return f"{self.group} {sizes} {str(self.dtype).removeprefix('torch.')}"

    @property
    def passes(self) -> str:
        return "forward + backward" if self.backward else "forward"

    def work_of(self, contender: Contender) -> str:
        """The contender on which the work of another is counted: ours of the same definition, or the case's first."""
        ours = (one.name for one in self.contenders if is_ours(one.name) and one.truth == contender.truth)
        return next(ours, self.contenders[0].name)

    @property
    def tokens(self) -> int:
        return self.shape["B"] * (self.shape["S"] if self.x_axis == "S" else 1)
