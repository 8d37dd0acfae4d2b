"""Causal depthwise convolution over time, with the last inputs as its state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

ConvState = tuple[Tensor]  # the last K inputs (B, K, D), oldest first


class CausalConv1d(nn.Module):
    """y_t = bias + sum_j weight_j x_{t-K+1+j} for every feature on its own. Input and output (B, S, D)."""

    def __init__(self, features: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        # The parameters are kept in an nn.Conv1d for the official keys `conv.weight` (D, 1, K) and `conv.bias` (D).
        self.conv = nn.Conv1d(features, features, kernel_size, groups=features)

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()

    def forward(self, x: Tensor, state: Sequence[Tensor] | Tensor | None = None) -> Tensor:
        """``state`` as `last_inputs` returns it; None means zeros before the first step."""
        K = self.kernel_size
        padded = pad(x, (0, 0, K - 1, 0)) if state is None else torch.cat([self._before(x, state), x], 1)
        return conv1d(padded.transpose(1, 2), self.conv.weight, self.conv.bias, groups=x.shape[2]).transpose(1, 2)

    def last_inputs(self, x: Tensor, state: Sequence[Tensor] | Tensor | None = None) -> ConvState:
        """The state after x: the last K inputs, zeros before the first step, as a new tensor."""
        K = self.kernel_size
        if x.shape[1] >= K:
            return (x[:, x.shape[1] - K :].clone(),)
        if state is None:
            return (pad(x, (0, 0, K - x.shape[1], 0)),)
        before = self._before(x, state, K)
        return (torch.cat([before[:, x.shape[1] :], x], 1),)

    def _before(self, x: Tensor, state: Sequence[Tensor] | Tensor, count: int | None = None) -> Tensor:
        """The last ``count`` inputs before x, (B, count, D), default K - 1. Official states hold K (step) or K - 1 (forward)."""
        K = self.kernel_size
        count = K - 1 if count is None else count
        held = state if isinstance(state, Tensor) else state[0]
        B, _, D = x.shape
        if held.dim() != 3 or held.shape[0] != B or held.shape[1] not in (K - 1, K) or held.shape[2] != D:
            raise ValueError(f"conv_state: got shape {tuple(held.shape)}, expected (B, K, D) = {(B, K, D)}")
        held = held.to(x.dtype)
        missing = max(count - held.shape[1], 0)
        return pad(held, (0, 0, missing, 0)) if missing else held[:, held.shape[1] - count :]
