"""Recurrent states, and what can be done with any state that this package returns.

Wherever a state is accepted, a plain tuple of the same tensors is too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from . import checks


def state_dtype(x: Tensor) -> torch.dtype:
    """What the states of a call on x are kept in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def shown(fields: Any) -> str:
    """A named tuple of tensors in one line, by dtype, shape and device: the numbers of a state say little on a screen."""
    return f"{type(fields).__name__}({', '.join(f'{name}={_part(part)}' for name, part in zip(fields._fields, fields))})"


def _part(part: object) -> str:
    if not isinstance(part, Tensor):
        return repr(part)
    place = "" if part.device.type == "cpu" else f" on {part.device}"
    return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}{place}"


class MLSTMState(NamedTuple):
    """State of the mLSTM: matrix memory, normaliser and stabiliser, float32 (float64 for float64 inputs).

    ``m`` is a gauge: ``(C, n, m)`` and ``(C e^a, n e^a, m - a)`` are the same state. A fresh state is all zeros.

    Attributes:
        C: (B, NH, DHQK, DHHV), the matrix memory.
        n: (B, NH, DHQK), the normaliser.
        m: (B, NH), the stabiliser.

    Examples:
        >>> MLSTMState(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8), torch.zeros(1, 4))
        MLSTMState(C=float32 (1, 4, 8, 8), n=float32 (1, 4, 8), m=float32 (1, 4))
    """

    C: Tensor
    n: Tensor
    m: Tensor

    def __repr__(self) -> str:
        return shown(self)


class SLSTMState(NamedTuple):
    """State of the sLSTM: output, cell, normaliser and stabiliser, float32 (float64 for float64 inputs).

    An element with ``n`` = 0 is fresh. A fresh state is all zeros.

    Attributes:
        h: (B, NH, DH), the output.
        c: (B, NH, DH), the cell.
        n: (B, NH, DH), the normaliser.
        m: (B, NH, DH), the stabiliser.

    Examples:
        >>> h, c, n, m = SLSTMState(*torch.zeros(4, 2, 4, 8))
        >>> h.shape
        torch.Size([2, 4, 8])
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor

    def __repr__(self) -> str:
        return shown(self)


# A named tuple is a pytree as it is; a saved program also wants the name under which it is written down, and its example inputs
# are read with weights_only.
for _state in (MLSTMState, SLSTMState):
    _pytree._register_namedtuple(_state, serialized_type_name=f"xlstm_cuda.{_state.__name__}")
torch.serialization.add_safe_globals([MLSTMState, SLSTMState])


def select(state: Any, rows: Tensor | Sequence[int]) -> Any:
    """Rows of a state, in any order: fewer of them, or some more than once, as beam search wants them.

    Args:
        state: any state that this package returns: MLSTMState and SLSTMState, with or without a layer's leading axis; the
            official forms of blocks, which are nested dictionaries and tuples; None for a fresh one. The state of a layer that
            had unbatched input has no rows: there its layers are taken for rows.
        rows: int64 or int32 (B'), on the state's device, or integers; each from 0 to B-1.

    Returns:
        A state of the same form with B' rows, new tensors, differentiable.

    Raises:
        TypeError: not a state, or rows that are not integers.
        ValueError: rows out of range, or not one axis. Values are inspected on CPU tensors only.

    Examples:
        >>> state = MLSTMState(torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8), torch.zeros(3, 4))
        >>> select(state, [2, 0]).C.equal(state.C[[2, 0]])
        True
    """
    if isinstance(rows, Tensor):
        checks.dtype("rows", rows, (torch.int64, torch.int32))
        checks.rank("rows", rows, "(B')")
    elif not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        raise TypeError(f"rows: got {rows!r}, expected integers")

    def chosen(part: Tensor, axis: int) -> Tensor:
        index = rows.to(part.device) if isinstance(rows, Tensor) else torch.tensor(rows, dtype=torch.int64, device=part.device)
        B = part.shape[axis]
        known = index.device.type == "cpu" and not torch.compiler.is_compiling()
        if known and index.numel() and not (0 <= int(index.min()) and int(index.max()) < B):
            raise ValueError(f"rows: got {index.tolist()}, expected numbers from 0 to {B - 1}, the rows of the state")
        return part.index_select(axis, index)

    return _each(state, chosen)


def expand(state: Any, n: int) -> Any:
    """Every row n times, one copy after the other: row r becomes rows r n to (r+1) n - 1. ``state`` is what `select` takes.

    Examples:
        >>> state = SLSTMState(*torch.randn(4, 2, 4, 8))
        >>> expand(state, 3).h.shape
        torch.Size([6, 4, 8])
    """
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n: got {type(n).__name__}, expected int")
    if n < 0:
        raise ValueError(f"n: got {n}, expected at least 0")
    return _each(state, lambda part, axis: part.repeat_interleave(n, axis))


def join(parts: Sequence[Any]) -> Any:
    """The rows of several states of one form, one after the other, as new tensors; at least one. ``parts``: what `select` takes.

    Examples:
        >>> join([SLSTMState(*torch.randn(4, 2, 4, 8)), SLSTMState(*torch.randn(4, 1, 4, 8))]).h.shape
        torch.Size([3, 4, 8])
    """
    columns = zip(*(tensors(part) for part in parts), strict=True)
    return _each(parts[0], lambda _, axis: torch.cat([part for part, _ in next(columns)], axis))


def tensors(state: Any) -> list[tuple[Tensor, int]]:
    """Every tensor of a state, with the axis of its rows. ``state`` is what `select` takes."""
    found: list[tuple[Tensor, int]] = []

    def add(part: Tensor, axis: int) -> Tensor:
        found.append((part, axis))
        return part

    _each(state, add)
    return found


def rows(state: Any) -> int | None:
    """How many rows a state has; None for a fresh one, which has none of its own.

    Raises:
        ValueError: its tensors do not agree. TypeError: not a state.
    """
    found = sorted({part.shape[axis] for part, axis in tensors(state)})
    if len(found) > 1:
        raise ValueError(f"state: got tensors of {found[0]} and of {found[-1]} rows, expected as many rows in each")
    return found[0] if found else None


def to(state: Any, device: torch.device | str) -> Any:
    """The state on another device, like Tensor.to: what is there already is not copied. ``state`` is what `select` takes.

    Examples:
        >>> to(SLSTMState(*torch.randn(4, 2, 4, 8)), "meta").h.device
        device(type='meta')
    """
    return _each(state, lambda part, _: part.to(device))


def detach(state: Any) -> Any:
    """The state without its history, for training on pieces of a long sequence; shares memory. ``state`` is what `select` takes.

    Examples:
        >>> detach(SLSTMState(*torch.randn(4, 2, 4, 8, requires_grad=True))).h.requires_grad
        False
    """
    return _each(state, lambda part, _: part.detach())


def _each(state: Any, change: Callable[[Tensor, int], Tensor], axis: int = 0) -> Any:
    """``change(tensor, axis of the rows)`` of every tensor in a state; the form stays."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return change(state, axis)
    if isinstance(state, (MLSTMState, SLSTMState)):
        rank = 4 if isinstance(state, MLSTMState) else 3
        return type(state)(*(change(part, state[0].dim() - rank) for part in state))
    if isinstance(state, Mapping):  # the official sLSTM state is one tensor (4, B, D)
        return {key: _each(part, change, int(key == "slstm_state" and isinstance(part, Tensor))) for key, part in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(_each(part, change) for part in state)
    raise TypeError(f"state: got {type(state).__name__}, expected a state that this package returns")
