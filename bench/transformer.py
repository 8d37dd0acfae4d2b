"""The contrast: a Transformer of equal width and depth, with PyTorch's own fused attention and a KV cache for decoding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class TransformerBlock(nn.Module):
    """Pre-norm causal self-attention, then an MLP of four times the width. Input and output (B, S, D)."""

    def __init__(self, D: int, NH: int):
        super().__init__()
        self.NH = NH
        self.norm, self.mlp_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        return self._rest(x, scaled_dot_product_attention(q, k, v, is_causal=True))

    def step(self, x: Tensor, cache: Tensor, length: int) -> Tensor:
        """One token x (B, 1, D) after ``length`` others; its key and value are written to cache (2, B, NH, S, D / NH)."""
        q, k, v = self._heads(x)
        cache[0, :, :, length : length + 1] = k
        cache[1, :, :, length : length + 1] = v
        keys, values = cache[:, :, :, : length + 1].unbind(0)
        return self._rest(x, scaled_dot_product_attention(q, keys, values))

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        B, S, D = x.shape
        return self.qkv(self.norm(x)).view(B, S, 3, self.NH, D // self.NH).permute(2, 0, 3, 1, 4).unbind(0)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


class TransformerLM(nn.Module):
    """Embedding, blocks, norm, head; without positions, which cost next to nothing. Token ids (B, S) -> logits (B, S, V)."""

    def __init__(self, vocab_size: int, D: int, NH: int, num_blocks: int):
        super().__init__()
        self.NH = NH
        self.embedding = nn.Embedding(vocab_size, D)
        self.blocks = nn.ModuleList(TransformerBlock(D, NH) for _ in range(num_blocks))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, vocab_size, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embedding(idx)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def cache(self, B: int, S: int) -> list[Tensor]:
        """Keys and values of S tokens, random, with room for one more, for every block."""
        weight = self.head.weight
        shape = (2, B, self.NH, S + 1, self.embedding.embedding_dim // self.NH)
        return [torch.randn(shape, device=weight.device, dtype=weight.dtype) for _ in self.blocks]

    def step(self, idx: Tensor, caches: list[Tensor], length: int) -> Tensor:
        """Logits (B, 1, V) of one token (B, 1) after ``length`` others."""
        x = self.embedding(idx)
        for block, cache in zip(self.blocks, caches):
            x = block.step(x, cache, length)  # type: ignore[operator]
        return self.head(self.norm(x))
