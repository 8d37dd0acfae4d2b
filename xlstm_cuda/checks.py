"""Argument checks. Every message names the operand, what it got and what is expected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(name: str, value: object) -> Tensor:
    """TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    return value


def dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """TypeError unless the tensor has one of the allowed dtypes."""
    if value.dtype not in allowed:
        expected = " or ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(allowed))
        raise TypeError(f"{name}: got dtype {str(value.dtype).removeprefix('torch.')}, expected {expected}")


def shape(name: str, value: Tensor, expected: Sequence[int], axes: str) -> None:
    """ValueError unless the tensor has this shape; ``axes`` names it, e.g. "(B, S, NH)"."""
    if value.shape != tuple(expected):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {axes} = {tuple(expected)}")


def rank(name: str, value: Tensor, axes: str) -> None:
    """ValueError unless the tensor has as many axes as ``axes`` names."""
    if value.dim() != axes.count(",") + 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {axes}")


def device(name: str, value: Tensor, expected: torch.device) -> None:
    """ValueError unless the tensor is on the device of the other operands."""
    if value.device != expected:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {expected}, where the other operands are")


def operand(
    name: str, value: Tensor, shape_: Sequence[int], axes: str, dtypes: Sequence[torch.dtype], device_: torch.device
) -> None:
    """`dtype`, `shape` and `device` of one tensor; says at once where there is nothing to say, as in a decoding loop."""
    if value.dtype in dtypes and value.shape == shape_ and value.device == device_:
        return
    dtype(name, value, dtypes)
    shape(name, value, shape_, axes)
    device(name, value, device_)


def choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """ValueError unless the option has one of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}")


def state(
    value: object,
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    axes: Sequence[str],
    state_dtype: torch.dtype,
    state_device: torch.device,
) -> tuple[Tensor, ...]:
    """A state given as any tuple or list of tensors; all of its tensors, or ValueError."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"state: got {type(value).__name__}, expected a tuple ({', '.join(names)})")
    if len(value) != len(names) or any(v is None for v in value):
        got = f"{sum(v is not None for v in value)} tensors"
        raise ValueError(f"state: got {got}, expected all of ({', '.join(names)})")
    for name, part, expected, part_axes in zip(names, value, shapes, axes):
        operand(f"state.{name}", tensor(f"state.{name}", part), expected, part_axes, (state_dtype,), state_device)
    return tuple(value)


def reset(value: Tensor, batch: int, steps: int, expected_device: torch.device) -> None:
    """TypeError or ValueError unless the tensor says of every step whether its sample starts afresh there: bool (B, S)."""
    dtype("reset", tensor("reset", value), (torch.bool,))
    shape("reset", value, (batch, steps), "(B, S)")
    device("reset", value, expected_device)


def cu_seqlens(value: Tensor, batch: int, steps: int, expected_device: torch.device) -> int:
    """Checks sequence borders and returns their number of sequences N. Values are inspected on CPU tensors only."""
    tensor("cu_seqlens", value)
    dtype("cu_seqlens", value, (torch.int32,))
    rank("cu_seqlens", value, "(N+1)")
    device("cu_seqlens", value, expected_device)
    if batch != 1:
        raise ValueError(f"cu_seqlens: needs B = 1 with all sequences on the S axis, got B = {batch}")
    if value.shape[0] < 1:
        raise ValueError("cu_seqlens: got no entries, expected N+1 borders from 0 to S")
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        borders = value.tolist()
        if borders[0] != 0 or borders[-1] != steps or any(a > b for a, b in itertools.pairwise(borders)):
            raise ValueError(f"cu_seqlens: got {_short(borders)}, expected borders that rise from 0 to S = {steps}")
    return value.shape[0] - 1


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:4]))}, ..., {values[-1]}]"
