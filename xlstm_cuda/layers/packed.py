"""A PackedSequence's steps, one sequence after the other, as cu_seqlens wants them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence


class SequenceOrder(NamedTuple):
    """Where the T steps of a PackedSequence go when its N sequences lie one after the other.

    Sequences keep the order of the caller's batch (not the sorted one), so states need no permutation.
    """

    cu_seqlens: Tensor  #: (N+1,) int32, borders of the sequences
    from_packed: Tensor  #: (T,) the packed step at each place of the new order
    to_packed: Tensor  #: (T,) the place of each packed step; the inverse of ``from_packed``
    reversal: Tensor  #: (T,) each sequence's steps backwards; its own inverse


def reversal(cu_seqlens: Tensor, steps: int) -> Tensor:
    """(T,): each sequence's steps backwards; its own inverse."""
    place = torch.arange(steps, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), place.int(), right=True).clamp(max=max(cu_seqlens.shape[0] - 2, 0))
    return (cu_seqlens[sequence] + cu_seqlens[sequence + 1] - 1 - place) if steps else place


def ends(reset: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """reset (B, S) -> (B, S): whether the next step of the same sequence starts afresh, where the reverse direction does."""
    after = pad(reset[:, 1:], (0, min(1, reset.shape[1])))
    if cu_seqlens is None:
        return after
    last = torch.zeros(reset.shape[1] + 1, dtype=torch.bool, device=reset.device).index_fill(0, cu_seqlens.long(), True)[1:]
    return after & ~last


def sequence_order(packed: PackedSequence) -> SequenceOrder:
    """O(T) work and memory, however different the lengths; index arithmetic on the data's device, without a synchronisation."""
    sizes, device = packed.batch_sizes, packed.data.device
    N, T = (int(sizes[0]) if len(sizes) else 0), int(sizes.sum())
    step = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)  # of each packed step
    rank = torch.arange(T, device=sizes.device) - (sizes.cumsum(0) - sizes)[step]  # its sequence, longest first
    lengths = torch.bincount(rank, minlength=N)
    step, row, lengths = step.to(device), rank.to(device), lengths.to(device)
    if packed.sorted_indices is not None:
        row, lengths = packed.sorted_indices[row], lengths[packed.unsorted_indices]
    ends = lengths.cumsum(0)
    to_packed = (ends - lengths)[row] + step
    from_packed = torch.empty_like(to_packed).scatter_(0, to_packed, torch.arange(T, device=device))
    reversal = (ends[row] - 1 - step)[from_packed]
    return SequenceOrder(torch.cat([ends.new_zeros(1), ends]).int(), from_packed, to_packed, reversal)
