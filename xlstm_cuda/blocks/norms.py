"""Layer norms whose weight is stored as a difference from 1, as official checkpoints do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Layer norm over the last axis with scale 1 + weight, no bias. Input and output (..., D)."""

    weight: nn.Parameter | None

    def __init__(self, dim: int, weight: bool = True, eps: float = 1e-5):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.empty(dim)) if weight else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        if weight is not None and weight.dtype != x.dtype:
            weight = _beside(x, weight)
        return torch.layer_norm(x, (self.dim,), None if weight is None else 1.0 + weight, None, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, weight={self.weight is not None}, eps={self.eps}"


class MultiHeadLayerNorm(LayerNorm):
    """Layer norm of each head on its own, scale 1 + weight. Input (..., NH, DH), output (..., NH*DH)."""

    def forward(self, h: Tensor) -> Tensor:
        normed = torch.layer_norm(h, h.shape[-1:], None, None, self.eps).flatten(-2)
        weight: Tensor | None = self.weight
        if weight is not None and weight.dtype != h.dtype:
            weight = _beside(h, weight)
        return normed if weight is None else torch.addcmul(normed, normed, weight)


def _beside(x: Tensor, weight: Tensor) -> Tensor:
    """The weight; under autocast never in another half precision than x, which layer_norm does not take."""
    if weight.dtype == torch.float32 or not torch.is_autocast_enabled(x.device.type):
        return weight
    return weight.to(x.dtype)
