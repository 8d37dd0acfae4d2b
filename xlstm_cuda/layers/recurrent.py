"""What torch.nn.LSTM's contract asks of a layer, whatever its cell: input forms, layers, directions, dropout, states."""

from __future__ import annotations

import math
import numbers
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .. import checks
from ..states import state_dtype
from .packed import ends, reversal, sequence_order


class RecurrentLayer(nn.Module):
    """Stacked cells over a sequence. A subclass makes the weights and runs one cell.

    Inside, a batch is (B, S, features); a PackedSequence is (1, T, features) with cu_seqlens. State k of the list belongs to
    layer k // num_directions and direction k % num_directions.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    num_heads: int
    state_type: Callable[..., Any]
    state_axes: tuple[str, ...]  #: of each state tensor, after the batch axis

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        num_heads: int,
    ) -> None:
        super().__init__()
        for name, value in (
            ("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers), ("num_heads", num_heads)
        ):  # fmt: skip
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: got {type(value).__name__}, expected int")
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        for name, flag in (("bias", bias), ("batch_first", batch_first), ("bidirectional", bidirectional)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name}: got {type(flag).__name__}, expected bool")
        if not isinstance(dropout, numbers.Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout: got {dropout!r}, expected a probability from 0 to 1")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size: got {hidden_size}, expected a multiple of num_heads = {num_heads}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout is applied after every layer but the last, so it does nothing with one layer: "
                f"got dropout={dropout} and num_layers=1",
                stacklevel=3,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.num_heads = num_heads

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    def cells(self) -> list[tuple[str, int]]:
        """Name suffix and input size of every cell's parameters, layer-major."""
        return [
            (f"l{layer}{suffix}", self.input_size if layer == 0 else self.hidden_size * self.num_directions)
            for layer in range(self.num_layers)
            for suffix in ("", "_reverse")[: self.num_directions]
        ]

    @abstractmethod
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each tensor of one cell's state, after the batch axis."""

    @abstractmethod
    def run_sequence(
        self, x: Tensor, state: Any, cu_seqlens: Tensor | None, reset: Tensor | None, cell: str
    ) -> tuple[Tensor, Any]:
        """One cell: x (B, S, features) -> h (B, S, hidden_size) and its final state; a state of None is fresh."""

    @abstractmethod
    def run_step(self, x: Tensor, state: Any, cell: str) -> tuple[Tensor, Any]:
        """One cell and one token: x (B, features) -> h (B, hidden_size) and the new state."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        state: Any = None,
        *,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Runs the layer over a sequence.

        Args:
            input: (S, B, input_size); (B, S, input_size) with batch_first; (S, input_size) unbatched; or a PackedSequence.
            state: before the first step; None is the fresh state. Each tensor carries a leading axis
                num_layers * num_directions (layer-major), then B (absent for unbatched input), then the cell's axes.
            cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1 or absent, states have
                N rows in B's place.
            reset: bool, the input's axes without the last: True starts that sample afresh before that step, as if a new
                sequence began there. So the reverse direction, which comes from the end, starts afresh after that step.

        Returns:
            output: in the form of the input, the last axis num_directions * hidden_size.
            state: after the last step of each sequence (the first step for the reverse direction), in the order of the batch.

        Raises:
            TypeError: input is not a tensor or PackedSequence; a dtype that does not fit the weights.
            ValueError: rank or features of the input, device, or a state that does not fit.
        """
        if isinstance(input, PackedSequence):
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens: got borders beside a PackedSequence, which has its own, expected None")
            if reset is not None:
                raise ValueError("reset: got a tensor beside a PackedSequence, expected None (cut its sequences instead)")
            return self._forward_packed(input, state)
        self._check_input(input, "(S, B, input_size) or (S, input_size)", (2, 3))
        batched = input.dim() == 3
        x = input.unsqueeze(0) if not batched else input if self.batch_first else input.transpose(0, 1)
        B = x.shape[0] if batched else None
        if cu_seqlens is not None:
            B = checks.cu_seqlens(cu_seqlens, x.shape[0], x.shape[1], x.device)
        if reset is not None:
            reset = self._reset(reset, input, batched)

        def reverse(x: Tensor) -> Tensor:
            return x.flip(1) if cu_seqlens is None else x.index_select(1, reversal(cu_seqlens, x.shape[1]))

        backwards = reverse(ends(reset, cu_seqlens)) if reset is not None and self.bidirectional else None
        x, last = self._layers(
            x,
            self._split(state, B, x),
            lambda x, s, cell: self.run_sequence(x, s, cu_seqlens, backwards if cell.endswith("_reverse") else reset, cell),
            reverse,
        )
        # nn.LSTM's (S, B, features) output is contiguous, and `output.view(-1, features)` is what people write next.
        output = x.squeeze(0) if not batched else x if self.batch_first else x.transpose(0, 1).contiguous()
        return output, self._join(last, B is not None)

    def _forward_packed(self, packed: PackedSequence, state: Any) -> tuple[PackedSequence, Any]:
        self._check_input(packed.data, "a PackedSequence of (S, input_size) sequences", (2,))
        order = sequence_order(packed)
        states = self._split(state, order.cu_seqlens.shape[0] - 1, packed.data)
        x, last = self._layers(
            packed.data.index_select(0, order.from_packed).unsqueeze(0),
            states,
            lambda x, s, cell: self.run_sequence(x, s, order.cu_seqlens, None, cell),
            lambda x: x.index_select(1, order.reversal),
        )
        output = x.squeeze(0).index_select(0, order.to_packed)
        return PackedSequence(output, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), self._join(last, True)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Advances one token; the same as `forward` on a sequence of length 1, in constant time and memory.

        Args:
            x: (B, input_size), or (input_size,) unbatched.
            state: as in `forward`; it is left as it is. None is the fresh state.

        Returns:
            output (B, hidden_size) or (hidden_size,), and the new state.

        Raises:
            RuntimeError: the layer is bidirectional, so its output depends on tokens to come.
            TypeError, ValueError: as in `forward`.
        """
        if self.bidirectional:
            raise RuntimeError(
                "step: got a bidirectional layer, expected bidirectional=False (the reverse direction starts at the end)"
            )
        self._check_input(x, "(B, input_size) or (input_size,)", (1, 2), "x")
        batched = x.dim() == 2
        states = self._split(state, x.shape[0] if batched else None, x)
        if not batched:
            x = x.unsqueeze(0)
        if state is None:
            shapes = [(x.shape[0], *shape) for shape in self.state_shapes()]
            states = [self.state_type(*(x.new_zeros(s, dtype=state_dtype(x)) for s in shapes)) for _ in states]
        x, last = self._layers(x, states, self.run_step, None)
        return x if batched else x.squeeze(0), self._join(last, batched)

    def _layers(
        self,
        x: Tensor,
        states: Sequence[Any],
        run: Callable[[Tensor, Any, str], tuple[Tensor, Any]],
        reverse: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, list[Any]]:
        """Every layer and direction; ``reverse`` turns the steps of each sequence around."""
        cells, last = self.cells(), []
        for layer in range(self.num_layers):
            k = layer * self.num_directions
            h, state = run(x, states[k], cells[k][0])
            last.append(state)
            if reverse is not None and self.bidirectional:
                backwards, state = run(reverse(x), states[k + 1], cells[k + 1][0])
                last.append(state)
                h = torch.cat([h, reverse(backwards)], -1)
            x = dropout(h, self.dropout, self.training) if layer < self.num_layers - 1 else h
        return x, last

    def _check_input(self, input: Any, axes: str, ranks: tuple[int, ...], name: str = "input") -> None:
        weight: Any = self.weight_ih_l0  # a plain tensor under torch.func.functional_call
        if not isinstance(input, Tensor):
            expected = "a torch.Tensor or PackedSequence" if name == "input" else "a torch.Tensor"
            raise TypeError(f"{name}: got {type(input).__name__}, expected {expected}")
        if self.batch_first:
            axes = axes.replace("(S, B, ", "(B, S, ")
        if input.dim() not in ranks:
            raise ValueError(f"{name}: got shape {tuple(input.shape)}, expected {axes}")
        if input.shape[-1] != self.input_size:
            raise ValueError(f"{name}: got shape {tuple(input.shape)}, expected {axes} with input_size = {self.input_size}")
        checks.device(name, input, weight.device)
        checks.dtype(name, input, _accepted_dtypes(weight))

    def _reset(self, reset: Tensor, input: Tensor, batched: bool) -> Tensor:
        """The caller's reset as (B, S)."""
        checks.dtype("reset", checks.tensor("reset", reset), (torch.bool,))
        axes = "(S)" if not batched else "(B, S)" if self.batch_first else "(S, B)"
        checks.shape("reset", reset, input.shape[:-1], axes)
        checks.device("reset", reset, input.device)
        return reset.unsqueeze(0) if not batched else reset if self.batch_first else reset.transpose(0, 1)

    def _split(self, state: Any, B: int | None, like: Tensor) -> list[Any]:
        """The caller's state, cell by cell, with a batch axis; B is None for unbatched input."""
        count = self.num_layers * self.num_directions
        if state is None:
            return [None] * count
        lead, lead_axes = ((count,), "") if B is None else ((count, B), "B, ")
        parts = checks.state(
            state,
            getattr(self.state_type, "_fields"),  # noqa: B009
            [(*lead, *shape) for shape in self.state_shapes()],
            [f"(num_layers * num_directions, {lead_axes}{axes})" for axes in self.state_axes],
            state_dtype(like),
            like.device,
        )
        if B is None:
            parts = tuple(part.unsqueeze(1) for part in parts)
        return [self.state_type(*cell) for cell in zip(*(part.unbind(0) for part in parts))]

    def _join(self, states: Sequence[Any], batched: bool) -> Any:
        """The inverse of `_split`."""
        parts = [torch.stack(cells) if len(cells) > 1 else cells[0].unsqueeze(0) for cells in zip(*states)]
        return self.state_type(*(part if batched else part.squeeze(1) for part in parts))

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws every parameter afresh."""

    def flatten_parameters(self) -> None:
        """Does nothing; nn.LSTM has it, so scripts call it."""

    def extra_repr(self) -> str:
        shown = f"{self.input_size}, {self.hidden_size}"
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        for name, default in {**defaults, **self.extra_defaults()}.items():
            if (value := getattr(self, name)) != default:
                shown += f", {name}={value!r}"
        return shown

    @abstractmethod
    def extra_defaults(self) -> dict[str, Any]:
        """The subclass's own options and their defaults, for `extra_repr`."""


def small_init_(weight: Tensor) -> None:
    """N(0, 2 / (5 fan_in)): Nguyen & Salazar 2019, the official package's choice for input projections."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * weight.shape[-1])))


def _accepted_dtypes(weight: Tensor) -> tuple[torch.dtype, ...]:
    """The weights' dtype; inside autocast, which casts them, any dtype that autocast casts."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return (weight.dtype, torch.float32, torch.bfloat16, torch.float16)
    return (weight.dtype,)
