"""The initialisations of the official models, each with its source."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def small_init_(weight: Tensor, dim: int) -> Tensor:
    """N(0, 2 / (5 dim)), in place: "small init" of Nguyen and Salazar, Transformers without Tears (arXiv 1910.05895)."""
    return nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)))


def wang_init_(weight: Tensor, dim: int, num_blocks: int | None) -> Tensor:
    """N(0, (2 / num_blocks)^2 / dim), in place: Ben Wang's initialisation of residual output projections (GPT-J, GPT-NeoX)."""
    return nn.init.normal_(weight, std=2 / ((num_blocks or 1) * math.sqrt(dim)))


def linspace_bias(count: int, start: float, end: float, like: Tensor) -> Tensor:
    """``count`` values evenly spaced from start to end: the forget gates start open (xlstm 2.0.6, "small_init")."""
    return torch.linspace(start, end, count, dtype=like.dtype, device=like.device)


def powerlaw_blockdependent(count: int, block_idx: int | None, num_blocks: int | None, like: Tensor) -> Tensor:
    """5 - 12 (d / (DH - 1))^(0.3 + 1.3 block_idx / (num_blocks - 1)) for unit d of the ``count`` = DH units of a head.

    Forget gates of one head run from open (5) to closed (-7), so that a layer has units with long and with short memory; deeper
    blocks keep more of them open (xlstm 2.0.6, "powerlaw_blockdependent").
    """
    depth = (block_idx or 0) / (num_blocks - 1) if num_blocks is not None and num_blocks > 1 else 0.0
    position = torch.linspace(0, 1, count, dtype=like.dtype, device=like.device)
    return 5.0 - 12.0 * position ** (0.3 + 1.3 * depth)


def uniform_(weight: Tensor, hidden_size: int) -> Tensor:
    """U(-1, 1) / sqrt(hidden_size), in place: torch.nn.LSTM's initialisation ("standard")."""
    bound = 1 / math.sqrt(hidden_size)
    return nn.init.uniform_(weight, -bound, bound)
