"""Linear maps that are block-diagonal over the features, one alone or several of the same input together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..weights import is_plain, under_autocast
from .init import small_init_

TILE = 64  #: features per matmul: narrower blocks are joined, because a batched 4x4 matmul costs far more than the zeros it saves
FEW_ROWS = 32  #: up to here, as in decoding, joining them would cost more than the matmul


class LinearHeadwise(nn.Module):
    """A linear map within each of ``num_heads`` equal slices of the features. (..., D) -> (..., D).

    weight (num_heads, D / num_heads out, D / num_heads in), bias (D) or None.
    """

    bias: nn.Parameter | None

    def __init__(self, features: int, num_heads: int, bias: bool = False):
        super().__init__()
        if num_heads < 1 or features % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the number of features, {features}")
        self.features, self.num_heads = features, num_heads
        self.width = features // num_heads
        self.joined = max(n for n in range(1, max(TILE // self.width, 1) + 1) if num_heads % n == 0)
        self.weight = nn.Parameter(torch.empty(num_heads, self.width, self.width))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, dim: int | None = None) -> None:
        """Small init for ``dim`` inputs (default: the slice's own width), zero bias."""
        small_init_(self.weight, dim or self.width)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.features
        decoding = not torch.compiler.is_compiling()  # a compiled or exported model takes every length: no branch on it
        if decoding and rows == 1:
            y = torch.bmm(self.weight, x.reshape(self.num_heads, self.width, 1))
        elif decoding and rows <= FEW_ROWS:
            y = torch.bmm(self.weight, x.reshape(rows, self.num_heads, self.width).permute(1, 2, 0)).permute(2, 0, 1)
        else:
            weight = self._tiles()
            y = torch.bmm(x.reshape(rows, len(weight), -1).transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        y = y.reshape(x.shape)
        return y if self.bias is None else y + self.bias

    def _tiles(self) -> Tensor:
        """The weight as (D / tile, tile, tile), each tile block-diagonal over the slices it joins."""
        if self.joined == 1:
            return self.weight
        blocks = self.weight.view(-1, self.joined, self.width, 1, self.width)
        same = torch.eye(self.joined, dtype=blocks.dtype, device=blocks.device).view(self.joined, 1, self.joined, 1)
        return (blocks * same).view(-1, self.joined * self.width, self.joined * self.width)

    def extra_repr(self) -> str:
        return f"{self.features}, num_heads={self.num_heads}, bias={self.bias is not None}"


def joint(x: Tensor, *maps: LinearHeadwise) -> Tensor:
    """Several maps without bias on the same x (..., D), one matmul: (NH, ..., len(maps), DH) for NH slices of DH features."""
    for one in maps:
        if not is_plain(one, LinearHeadwise):
            return torch.stack([each(x).unflatten(-1, (-1, maps[0].width)) for each in maps], -2).movedim(-3, 0)
    NH, DH = maps[0].num_heads, maps[0].width
    weight = torch.cat([under_autocast(one.weight) for one in maps], 1).transpose(1, 2)
    heads = x.reshape(-1, NH, DH).transpose(0, 1)
    return torch.bmm(heads, weight).view(NH, *x.shape[:-1], len(maps), DH)
