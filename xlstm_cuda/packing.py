"""Sequences of different length in one call: documents on one axis, and padded batches with an attention mask.

`pack` and `from_attention_mask` make the ``cu_seqlens`` and ``reset`` that every function, layer, block and model takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .states import shown


def pack(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Documents one after the other.

    Args:
        documents: at least one tensor (L, ...), token ids or features, of one dtype and device; any lengths L, 0 included.

    Returns:
        tokens (1, S, ...), S the sum of the lengths, and cu_seqlens int32 (N+1,), their borders, on the same device.

    Raises:
        TypeError: not tensors, or of different dtypes.
        ValueError: no document, or shapes or devices that differ (after the first axis).

    Examples:
        >>> tokens, cu_seqlens = pack([torch.tensor([1, 2, 3]), torch.tensor([4, 5])])
        >>> tokens, cu_seqlens
        (tensor([[1, 2, 3, 4, 5]]), tensor([0, 3, 5], dtype=torch.int32))
    """
    if isinstance(documents, Tensor) or not isinstance(documents, Sequence):
        raise TypeError(f"documents: got {type(documents).__name__}, expected a list of tensors")
    if not documents:
        raise ValueError("documents: got none, expected at least one tensor")
    for index, document in enumerate(documents):
        name, first = f"documents[{index}]", documents[0]
        if checks.tensor(name, document).dim() == 0:
            raise ValueError(f"{name}: got shape (), expected (L, ...)")
        checks.operand(name, document, (len(document), *first.shape[1:]), "(L, ...)", (first.dtype,), first.device)
    lengths = torch.tensor([0, *(len(document) for document in documents)], dtype=torch.int32, device="cpu")
    borders = lengths.cumsum(0, dtype=torch.int32).to(documents[0].device)
    return torch.cat(list(documents)).unsqueeze(0), borders


def unpack(packed: Tensor, cu_seqlens: Tensor) -> list[Tensor]:
    """The inverse of `pack`, also for what a model returns: (1, S, ...) and cu_seqlens (N+1,) -> N views (L, ...).

    Examples:
        >>> unpack(torch.arange(5)[None], torch.tensor([0, 3, 5], dtype=torch.int32))
        [tensor([0, 1, 2]), tensor([3, 4])]
    """
    if checks.tensor("packed", packed).dim() < 2:
        raise ValueError(f"packed: got shape {tuple(packed.shape)}, expected (1, S, ...)")
    checks.cu_seqlens(cu_seqlens, packed.shape[0], packed.shape[1], packed.device)
    return list(packed[0].split(cu_seqlens.diff().tolist()))


class Unpadded(NamedTuple):
    """A padded batch (B, S) as the recurrences want it, in two ways; see `from_attention_mask`.

    Attributes:
        reset: bool (B, S), true at the first token of every row.
        cu_seqlens: int32 (B+1,), the borders of the rows when their T tokens lie on one axis.
        positions: int64 (T,), where each token of the pack stands in the batch with its two axes flattened to one.
    """

    reset: Tensor
    cu_seqlens: Tensor
    positions: Tensor

    def __repr__(self) -> str:
        return shown(self)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, S, ...) -> (1, T, ...), the tokens alone; differentiable."""
        checks.shape("padded", padded, (*self.reset.shape, *padded.shape[2:]), "(B, S, ...)")
        return padded.flatten(0, 1).index_select(0, self.positions).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, T, ...) -> (B, S, ...), zeros at padding; differentiable."""
        checks.shape("packed", packed, (1, len(self.positions), *packed.shape[2:]), "(1, T, ...)")
        padded = packed.new_zeros((self.reset.numel(), *packed.shape[2:]))
        return padded.index_copy(0, self.positions, packed[0]).unflatten(0, self.reset.shape)


def from_attention_mask(mask: Tensor) -> Unpadded:
    """What an attention mask of Hugging Face's tokenizers says, for recurrences.

    There are two ways to use it:

    - ``model(x, reset=found.reset)`` needs no copies. Each row starts afresh at its first token, so the outputs at tokens are
      those of the row alone. The outputs at padding mean nothing. The final state is the row's own if its padding is on the left.
    - ``model(found.pack(x), cu_seqlens=found.cu_seqlens)`` computes nothing for padding. The final states, one per row, are right
      for padding on either side.

    Values are inspected, so on a GPU this waits for the device: call it once per batch, outside compiled code.

    Args:
        mask: (B, S), bool or integers: 1 at tokens, 0 at padding, to the left or right (or both); a row may have no token.

    Raises:
        TypeError: not a tensor, or a dtype that is not accepted.
        ValueError: another shape, values other than 0 and 1, or padding between tokens.

    Examples:
        >>> found = from_attention_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]))
        >>> found.cu_seqlens
        tensor([0, 2, 5], dtype=torch.int32)
        >>> found.pack(torch.tensor([[9, 1, 2], [3, 4, 5]]))
        tensor([[1, 2, 3, 4, 5]])
    """
    checks.dtype("mask", checks.tensor("mask", mask), (torch.bool, torch.int64, torch.int32, torch.uint8))
    checks.rank("mask", mask, "(B, S)")
    tokens = mask.bool()
    if bool((mask != tokens).any()):
        raise ValueError("mask: got values other than 0 and 1, expected 1 at tokens and 0 at padding")
    before = torch.nn.functional.pad(tokens[:, :-1], (min(1, mask.shape[1]), 0))
    reset = tokens & ~before
    if bool((parts := reset.sum(1)).gt(1).any()):
        row = int(parts.gt(1).int().argmax())
        raise ValueError(f"mask: got padding between the tokens of row {row}, expected it to the left or right of them")
    borders = torch.nn.functional.pad(tokens.sum(1).cumsum(0), (1, 0))
    return Unpadded(reset, borders.int(), tokens.flatten().nonzero().squeeze(1))
