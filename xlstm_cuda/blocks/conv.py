"""Causal depthwise convolution over time, with the last inputs as its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..ops import context, conv_cpu
from ..ops.context import Piece
from ..weights import is_plain, under_autocast

ConvState = tuple[Tensor]  # the last K inputs (B, K, D), oldest first
GivenState = Sequence[Tensor] | Tensor | None  # a ConvState, or its tensor alone; None is fresh


class _DepthwiseConv(torch.autograd.Function):
    """y_t = bias + sum_j weight_j x_{t+j}: x (B, S+K-1, D), weight (K, D), bias (D) -> y (B, S, D), of x's dtype.

    On a CPU one native pass each way, otherwise K shifted multiply-adds in place, both in float32 or wider and far faster than
    torch's depthwise conv1d, which needs time on the last axis. Autograd through the same adds would write a zero-filled gradient
    for every shift. With part, int64 (B, S+K-1), a step sees only inputs of its own part.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, part: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight, part)
        return _convolve(x, weight, bias, part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (dy,), (x, weight, part) = gradients, ctx.saved_tensors
        K, wide = weight.shape[0], torch.promote_types(x.dtype, torch.float32)
        S, x_, w, dy = x.shape[1] - K + 1, x.to(wide), weight.to(wide), dy.to(wide)
        if conv_cpu.usable(x_, w, dy) and not torch.is_grad_enabled():
            dx, dweight, dbias = conv_cpu.backward(dy, x_, w, part)
            return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype), None
        dx, dtaps = torch.zeros_like(x_), []
        for j in range(K):
            dx[:, j : j + S].addcmul_(_seen(dy, part, j, S), w[j])
            dtaps.append((dy * _seen(x_[:, j : j + S], part, j, S)).sum((0, 1)))
        return dx.to(x.dtype), torch.stack(dtaps).to(weight.dtype), dy.sum((0, 1)).to(weight.dtype), None


def _seen(tap: Tensor, part: Tensor | None, j: int, S: int) -> Tensor:
    """A tap (B, S, D), zeros where it belongs to another part than its step; part (B, S+K-1)."""
    return tap if part is None else tap.masked_fill((part[:, j : j + S] != part[:, part.shape[1] - S :]).unsqueeze(-1), 0)


def _convolve(x: Tensor, weight: Tensor, bias: Any, part: Tensor | None = None) -> Tensor:
    """The forward of `_DepthwiseConv`."""
    K, wide = weight.shape[0], torch.promote_types(x.dtype, torch.float32)
    S, x_, w, b = x.shape[1] - K + 1, _as(x, wide), _as(weight, wide), _as(bias, wide)
    if conv_cpu.usable(x_, w, b):
        return _as(conv_cpu.forward(x_, w, b, part), x.dtype)
    y = torch.addcmul(b, _seen(x_[:, :S], part, 0, S), w[0])
    for j in range(1, K):
        y.addcmul_(_seen(x_[:, j : j + S], part, j, S), w[j])
    return _as(y, x.dtype)


class CausalConv1d(nn.Module):
    """y_t = bias + sum_j weight_j x_{t-K+1+j} for every feature on its own. Input and output (B, S, D)."""

    def __init__(self, features: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        # The parameters are kept in an nn.Conv1d for the official keys `conv.weight` (D, 1, K) and `conv.bias` (D).
        self.conv = nn.Conv1d(features, features, kernel_size, groups=features)

    def reset_parameters(self) -> None:
        """U(-1, 1) / sqrt(K) for weight and bias, nn.Conv1d's own."""
        self.conv.reset_parameters()

    def forward(
        self, x: Tensor, state: GivenState = None, cu_seqlens: Tensor | None = None, reset: Tensor | None = None
    ) -> Tensor:
        """``state`` as `last_inputs` returns it; None means zeros before the first step. cu_seqlens, reset as in the layers."""
        before = self.kernel_size - 1
        if cu_seqlens is not None:
            apart, places = self._apart(x, state, cu_seqlens)
            part = None if reset is None else _parts(reset, apart.shape[1], places)
            return self._convolved(apart, part).index_select(1, places - before) if x.shape[1] else x
        padded = pad(x, (0, 0, before, 0)) if state is None else _joined(self._before(x, state, before), x)
        return self._convolved(padded, None if reset is None else _parts(reset, padded.shape[1]))

    def _convolved(self, padded: Tensor, part: Tensor | None = None) -> Tensor:
        """(B, S+K-1, D) -> (B, S, D); with ``part`` (B, S+K-1) of `_parts` a step sees only inputs of its own part."""
        if is_plain(self.conv, nn.Conv1d):
            return _DepthwiseConv.apply(padded, self.conv.weight.squeeze(1).t(), self.conv.bias, part)
        return self._called(padded) if part is None else self._called_in_parts(padded, part)

    def _called_in_parts(self, padded: Tensor, part: Tensor) -> Tensor:
        """`_called`, every step on a window of its own, zeros where its inputs belong to another part."""
        K, S = self.kernel_size, padded.shape[1] - self.kernel_size + 1
        taps = [_seen(padded[:, j : j + S], part, j, S) for j in range(K)]
        return self.conv(torch.stack(taps, -1).flatten(0, 1)).view(padded.shape[0], S, padded.shape[2])

    def _called(self, padded: Tensor) -> Tensor:
        """By a module in the convolution's place: padded (B, S+K-1, D) -> (B, S, D)."""
        if padded.shape[1] < self.kernel_size:
            return padded[:, self.kernel_size - 1 :]  # no step, which nn.Conv1d refuses
        return self.conv(padded.transpose(1, 2)).transpose(1, 2)

    def step(self, x: Tensor, state: GivenState = None) -> tuple[Tensor, ConvState]:
        """One input x (B, D): y (B, D) and the state after it, of which y is a weighted sum."""
        conv = self.conv
        if not is_plain(conv, nn.Conv1d):
            (window,) = self.last_inputs(x.unsqueeze(1), state)
            return self._called(window).squeeze(1), (window,)
        weight, bias = conv.weight, conv.bias
        assert bias is not None
        if not torch.is_grad_enabled() and conv_cpu.usable(x, weight, bias):
            y, window = conv_cpu.step(x, None if state is None else self._held(x, state), weight, bias)
            return y, (window,)
        before, x = self.kernel_size - 1, x.unsqueeze(1)
        window = pad(x, (0, 0, before, 0)) if state is None else _joined(self._before(x, state, before), x)
        convolve = _DepthwiseConv.apply if torch.is_grad_enabled() else _convolve
        return convolve(window, weight.squeeze(1).t(), bias).squeeze(1), (window,)

    def last_inputs(
        self, x: Tensor, state: GivenState = None, cu_seqlens: Tensor | None = None, reset: Tensor | None = None
    ) -> ConvState:
        """The state after x: the last K inputs, zeros before the first step and before the last reset, as a new tensor."""
        K, S = self.kernel_size, x.shape[1]
        if cu_seqlens is not None:
            apart, places = self._apart(x, state, cu_seqlens)
            window = torch.arange(K, device=x.device)
            ends = cu_seqlens[1:] + K * torch.arange(cu_seqlens.shape[0] - 1, device=x.device)
            last = ends[:, None] + window
            return (_own(apart[0, last], None if reset is None else _parts(reset, apart.shape[1], places)[0, last]),)
        joined = pad(x, (0, 0, K, 0)) if state is None else _joined(self._before(x, state, K), x)
        if reset is not None:
            return (_own(joined[:, S:], _parts(reset, S + K)[:, S:]),)
        return (joined[:, S:].clone(),)  # no branch on S, so that an exported model takes every S

    def before(self, x: Tensor, state: Any, piece: Piece, cu_seqlens: Tensor | None, reset: Tensor | None) -> ConvState:
        """The state before this rank's piece x of a longer sequence; the others as of `forward`, inside this piece."""
        given = (
            None
            if state is None
            else self._before(x, state, self.kernel_size, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        )
        given = context.begun(given, piece)
        (window,) = self.last_inputs(x, given, cu_seqlens, reset)
        return (context.inputs_before(window, piece, given, reset),)

    def _apart(self, x: Tensor, state: Sequence[Tensor] | Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        """N sequences on the axis of x (1, T, D), each behind the K inputs before it: (1, T + N K, D), and the T places of x."""
        K, N, (_, T, D), device = self.kernel_size, cu_seqlens.shape[0] - 1, x.shape, x.device
        steps = torch.arange(T, device=device)
        sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), steps.int(), right=True).clamp(max=N - 1)
        places = steps + K * (sequence + 1)
        starts = cu_seqlens[:-1] + K * torch.arange(N, device=device)
        before = (starts[:, None] + torch.arange(K, device=device)).flatten()
        held = x.new_zeros(N, K, D) if state is None else self._before(x, state, K, N)
        order = torch.empty(T + N * K, dtype=torch.int64, device=device)
        order[torch.cat([before, places])] = torch.arange(T + N * K, device=device)
        return _joined(held.reshape(1, N * K, D), x).index_select(1, order), places

    def inputs_before(self, x: Tensor, state: Sequence[Tensor] | Tensor) -> Tensor:
        """The inputs of ``state`` that steps of x (B, S, D) see beside their own: (B, K-1, D)."""
        return self._before(x, state, self.kernel_size - 1)

    def _before(self, x: Tensor, state: Sequence[Tensor] | Tensor, count: int, rows: int | None = None) -> Tensor:
        """The last ``count`` inputs before x, (B, count, D), or of as many ``rows``."""
        held = self._held(x, state, rows)
        if held.shape[1] < count:
            held = pad(held, (0, 0, count - held.shape[1], 0))
        return held.narrow(1, held.shape[1] - count, count)

    def _held(self, x: Tensor, state: Sequence[Tensor] | Tensor, rows: int | None = None) -> Tensor:
        """The inputs that the state holds, in x's dtype. Official states hold K (from step) or K - 1 (from forward)."""
        K, B, D = self.kernel_size, x.shape[0] if rows is None else rows, x.shape[-1]
        held = state if isinstance(state, Tensor) else state[0]
        if held.dim() != 3 or held.shape[0] != B or held.shape[1] not in (K - 1, K) or held.shape[2] != D:
            raise ValueError(f"conv_state: got shape {tuple(held.shape)}, expected (B, K, D) = {(B, K, D)}")
        if held.device != x.device:
            raise ValueError(f"conv_state: got a tensor on {held.device}, expected {x.device}, where x is")
        return _as(held, x.dtype)


def _parts(reset: Tensor, length: int, places: Tensor | None = None) -> Tensor:
    """reset (B, S) -> (B, length): the number of resets up to each input; x stands at ``places``, or at the end."""
    if places is None:
        return pad(reset.long(), (length - reset.shape[1], 0)).cumsum(1)
    return torch.zeros((1, length), dtype=torch.int64, device=reset.device).index_copy(1, places, reset.long()).cumsum(1)


def _own(window: Tensor, part: Tensor | None) -> Tensor:
    """The last inputs (B, K, D), zeros where they belong to another part than the last of them; part (B, K)."""
    return window if part is None else window.masked_fill((part != part[:, -1:]).unsqueeze(-1), 0)


def _joined(before: Tensor, x: Tensor) -> Tensor:
    return torch.cat([under_autocast(before), under_autocast(x)], 1)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)
