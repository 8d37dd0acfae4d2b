"""Linear maps that are block-diagonal over the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .init import small_init_

TILE = 64  #: features per matmul: narrower blocks are joined, because a batched 4x4 matmul costs far more than the zeros it saves


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
        weight = self._tiles()
        tiles = x.reshape(-1, len(weight), weight.shape[-1]).transpose(0, 1)
        y = torch.bmm(tiles, weight.transpose(1, 2)).transpose(0, 1).reshape(x.shape)
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
