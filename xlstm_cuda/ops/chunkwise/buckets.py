"""Sequences of different lengths (cu_seqlens) as plain padded batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .states import State


class Bucket:
    """Some rows of a batch as a plain padded batch. The whole batch is one bucket when cu_seqlens is not given."""

    def __init__(self, rows: Tensor | None = None, index: Tensor | None = None, real: Tensor | None = None):
        self.rows, self.index, self.real = rows, index, real  # (N',); (N', S') steps of the joint axis; which are real

    def take(self, x: Tensor, fill: float) -> Tensor:
        """(1, S, ...) -> (N', S', ...); steps after a sequence's end get ``fill``."""
        if self.index is None or self.real is None:
            return x
        out = x[0, self.index]
        out[~self.real] = fill
        return out

    def put(self, whole: Tensor, part: Tensor) -> None:
        """The inverse of `take`, into ``whole``."""
        if self.index is None or self.real is None:
            whole.copy_(part)
        else:
            whole[0, self.index[self.real]] = part[self.real].to(whole.dtype)

    def take_rows(self, x: Tensor) -> Tensor:
        """The rows of a state tensor (N, ...) that belong to this bucket."""
        return x if self.rows is None else x[self.rows]

    def take_state(self, state: State) -> State:
        C, n, m = state
        return self.take_rows(C), self.take_rows(n), self.take_rows(m)

    def put_rows(self, whole: Tensor, part: Tensor) -> None:
        """The inverse of `take_rows`, into ``whole``."""
        if self.rows is None:
            whole.copy_(part)
        else:
            whole[self.rows] = part


def buckets(cu_seqlens: Tensor | None, S: int) -> Iterator[Bucket]:
    """Sequences of similar length together, so that a padded batch is at most twice as long as what it holds."""
    if cu_seqlens is None:
        yield Bucket()
        return
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    by_length = lengths.argsort(stable=True)
    ordered = lengths[by_length].tolist()
    first = next((n for n, length in enumerate(ordered) if length > 0), len(ordered))  # an empty sequence passes its state on
    while first < len(ordered):
        end = first + 1
        while end < len(ordered) and ordered[end] <= 2 * ordered[first]:
            end += 1
        rows = by_length[first:end]
        steps = torch.arange(ordered[end - 1], device=lengths.device)
        real = steps < lengths[rows].unsqueeze(-1)
        yield Bucket(rows, (starts[rows].unsqueeze(-1) + steps).clamp(max=max(S - 1, 0)), real)
        first = end
