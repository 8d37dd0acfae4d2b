"""The denominator of h (M3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .options import Options


class Normalizer(NamedTuple):
    """What (M3) makes of the dot product s q.n: h = s q C * factor; ``active`` where the dot product is above the floor."""

    factor: Tensor
    active: Tensor


def normalizer_of(dot: Tensor, m: Tensor, options: Options, dtype: torch.dtype) -> Normalizer:
    """dot, m of any one shape, float64. Written so that exp(-m) cannot overflow.

    A denominator below the smallest normal number of ``dtype``, the states', counts as 0: h is 0 and passes no gradient.
    """
    if not options.normalize:
        return Normalizer(torch.ones_like(dot), torch.zeros_like(dot, dtype=torch.bool))
    shrink, floor = m.clamp(max=0).exp(), m.clamp(min=0).neg().exp()
    size = dot.abs() * shrink
    denominator = torch.maximum(size, floor) + options.eps * shrink
    factor = torch.where(denominator < torch.finfo(dtype).tiny, 0.0, shrink / denominator)
    return Normalizer(factor, size > floor)
