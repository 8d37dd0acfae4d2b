"""The gated feed-forward network of the sLSTM block (GeGLU with the default activation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .init import small_init_, wang_init_


def _squared_relu(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu^2": _squared_relu,
    "sigmoid": torch.sigmoid,
    "swish": F.silu,
    "selu": F.selu,
}


@dataclass
class UpProjConfigMixin:
    """Fields of every layer that widens its input: width = proj_factor * embedding_dim, rounded to a multiple."""

    proj_factor: float | None = None
    round_proj_up_dim_up: bool = True
    round_proj_up_to_multiple_of: int = 64

    _proj_up_dim: int | None = None  # computed

    def _set_proj_up_dim(self, embedding_dim: int | None) -> None:
        if self.proj_factor is not None and embedding_dim is not None:
            multiples = self.proj_factor * embedding_dim / self.round_proj_up_to_multiple_of
            rounded = math.ceil(multiples) if self.round_proj_up_dim_up else math.floor(multiples)
            self._proj_up_dim = int(rounded * self.round_proj_up_to_multiple_of)


@dataclass
class FeedForwardConfig(UpProjConfigMixin):
    """Fields and defaults of `xlstm` 2.0.6."""

    proj_factor: float = 1.3
    act_fn: str = "gelu"
    embedding_dim: int = -1
    dropout: float = 0.0
    bias: bool = False
    ff_type: Literal["ffn_gated"] = "ffn_gated"

    _num_blocks: int = 1

    def __post_init__(self) -> None:
        self._set_proj_up_dim(self.embedding_dim)
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: got {self.act_fn!r}, expected one of {', '.join(map(repr, ACTIVATIONS))}")
        if self.ff_type != "ffn_gated":
            raise ValueError(f"ff_type: got {self.ff_type!r}, expected 'ffn_gated'")


class GatedFeedForward(nn.Module):
    """proj_down(act(gate) * up) with (gate, up) = proj_up(x). Input and output (..., D)."""

    config_class = FeedForwardConfig

    def __init__(self, config: FeedForwardConfig):
        super().__init__()
        self.config = config
        if not config._proj_up_dim or config.embedding_dim < 1:
            raise ValueError(f"FeedForwardConfig: got embedding_dim {config.embedding_dim}, expected at least 1")
        self.proj_up = nn.Linear(config.embedding_dim, 2 * config._proj_up_dim, bias=config.bias)
        self.proj_down = nn.Linear(config._proj_up_dim, config.embedding_dim, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small init of proj_up, Wang init of proj_down, zero biases."""
        small_init_(self.proj_up.weight, self.config.embedding_dim)
        wang_init_(self.proj_down.weight, self.config.embedding_dim, self.config._num_blocks)
        for linear in (self.proj_up, self.proj_down):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.proj_up(x).chunk(2, -1)
        y = self.proj_down(ACTIVATIONS[self.config.act_fn](gate) * up)
        return self.dropout(y) if self.dropout.training else y


FeedForward = GatedFeedForward
