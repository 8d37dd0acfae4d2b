"""How a batch is cut into chunks, and chunks into groups that bound the workspace."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .options import Options

CHUNK = 64  #: steps of a chunk where no chunk_size is given; a shorter sequence is one chunk
WORKSPACE_BYTES = 48 << 20  #: per group of chunks; a group has at least one chunk


class Layout(NamedTuple):
    """How a batch (B, S, NH, D) is cut into chunks (NC, B*NH, L, D)."""

    B: int
    S: int
    NH: int
    L: int
    NC: int

    @classmethod
    def of(cls, B: int, S: int, NH: int, options: Options) -> Layout:
        L = options.chunk_size or min(S, CHUNK)
        return cls(B, S, NH, L, -(-S // L))

    def cut(self, x: Tensor, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
        """(B, S, NH, ...) -> (NC, R, L, ...), the tail chunk filled up."""
        x = x.to(dtype)
        if missing := self.NC * self.L - self.S:
            x = pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=fill)
        x = x.reshape(self.B, self.NC, self.L, self.NH, *x.shape[3:]).movedim((1, 0, 3, 2), (0, 1, 2, 3))
        # Contiguous also where a view would do (B = 1): every batched matmul would copy it again.
        return x.reshape(self.NC, self.B * self.NH, self.L, *x.shape[4:]).contiguous()

    def join(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(NC, R, L, ...) -> (B, S, NH, ...), contiguous and no view of x: callers change their results in place."""
        x = x.reshape(self.NC, self.B, self.NH, self.L, *x.shape[3:]).movedim((0, 1, 2, 3), (1, 0, 3, 2))
        joined = x.new_empty((self.B, self.S, self.NH, *x.shape[4:]), dtype=dtype)
        return joined.copy_(x.reshape(self.B, self.NC * self.L, self.NH, *x.shape[4:])[:, : self.S])

    def groups(self, DHQK: int, DHHV: int, element_size: int) -> list[slice]:
        """Slices of chunks whose workspace (weights, scores, states, outputs) fits in WORKSPACE_BYTES."""
        per_row = 3 * self.L * self.L + 2 * DHQK * DHHV + 3 * self.L * (DHQK + DHHV)
        size = max(1, WORKSPACE_BYTES // (element_size * self.B * self.NH * per_row))
        return [slice(k, min(k + size, self.NC)) for k in range(0, self.NC, size)]
