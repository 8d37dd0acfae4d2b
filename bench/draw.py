"""Random operands: from the generator of the CPU for what contenders are compared on, from the device's own where there are many.

The gate compares results across devices, so its operands are the same numbers everywhere; a full shape on a GPU has a billion of
them, for which the CPU's generator takes seconds per contender.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DRAWN_ON_DEVICE = 1 << 23  #: numbers of one tensor from which on the device draws them; every gate shape is below


class Normal:
    """Draws tensors of standard normal float32 numbers on ``device``; the same ones for the same seed, device and sizes."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device, self.seed = device, seed
        self.on_cpu = torch.Generator().manual_seed(seed)
        self.on_device: torch.Generator | None = None

    def __call__(self, *size: int) -> Tensor:
        if not drawn_on_device(size, self.device):
            return torch.randn(size, generator=self.on_cpu).to(self.device)
        if self.on_device is None:
            self.on_device = torch.Generator(self.device).manual_seed(self.seed)
        return torch.randn(size, generator=self.on_device, device=self.device)


def drawn_on_device(size: Sequence[int], device: torch.device) -> bool:
    """Whether a tensor of this size is drawn by the device itself."""
    return device.type == "cuda" and torch.Size(size).numel() >= DRAWN_ON_DEVICE
