"""Models whose every weight matters: fresh ones have zeros, ones and gates that ignore their input."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def randomised(model: Model, by: float = 0.05) -> Model:
    """The model itself, with normal noise of this standard deviation added to every weight."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * by)
    return model
