"""Layers written out as loops over layers, directions and steps on the reference cells, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import xlstm_cuda
from xlstm_cuda import functional

KINDS = {"sLSTM": xlstm_cuda.sLSTM, "mLSTM": xlstm_cuda.mLSTM}


def make(kind: str, *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A float64 layer in which every parameter matters: the zeros and equal values of the initialisation are disturbed."""
    layer = KINDS[kind](*args, **{"dtype": torch.float64, **kwargs})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
    return layer


def random_state(layer: nn.Module, *batch: int, dtype: torch.dtype = torch.float64) -> Any:
    """A state as a run could have left it (n > 0), with leaves that require gradients."""
    lead = (layer.num_layers * layer.num_directions, *batch)
    parts = [torch.randn(*lead, *shape, dtype=dtype) for shape in layer.state_shapes()]
    if isinstance(layer, xlstm_cuda.sLSTM):
        parts = [parts[0].tanh(), parts[1], parts[2].abs() + 1, parts[3]]
    return layer.state_type(*(part.requires_grad_() for part in parts))


def one_sequence(layer: nn.Module, x: Tensor, state: Sequence[Tensor] | None) -> tuple[Tensor, Any]:
    """x (S, input_size), S >= 1, state without a batch axis -> output (S, num_directions * hidden_size) and the final state."""
    cell = _slstm_cell if isinstance(layer, xlstm_cuda.sLSTM) else _mlstm_cell
    last = []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(2 if layer.bidirectional else 1):
            name = f"l{number}" + ("_reverse" if direction else "")
            k = len(last)
            if state is None:
                s = [torch.zeros(1, *shape, dtype=x.dtype) for shape in layer.state_shapes()]
            else:
                s = [part[k].unsqueeze(0) for part in state]
            steps = list(range(x.shape[0]))
            h: list[Any] = [None] * len(steps)
            for t in reversed(steps) if direction else steps:
                h[t], s = cell(layer, x[t : t + 1], s, name)
            outputs.append(torch.cat(h))
            last.append([part.squeeze(0) for part in s])
        x = torch.cat(outputs, -1)
    return x, layer.state_type(*(torch.stack(parts) for parts in zip(*last)))


def _parameter(layer: nn.Module, name: str) -> Tensor | None:
    return dict(layer.named_parameters()).get(name)


def _slstm_cell(layer: nn.Module, x: Tensor, state: Any, name: str) -> tuple[Tensor, Any]:
    H, NH = layer.hidden_size, layer.num_heads
    W, R, b = (_parameter(layer, f"{part}_{name}") for part in ("weight_ih", "weight_hh", "bias"))
    gates = torch.stack([x @ W[g * H : (g + 1) * H].T for g in range(4)], 1)
    bias = None if b is None else torch.stack([b[g * H : (g + 1) * H] for g in range(4)]).reshape(4, NH, H // NH)
    gates = gates.reshape(1, 4, NH, H // NH)
    h, state = functional.slstm_step(gates, R, bias, state, forget_gate=layer.forget_gate, backend="reference")
    return h.reshape(1, H), state


def _mlstm_cell(layer: nn.Module, x: Tensor, state: Any, name: str) -> tuple[Tensor, Any]:
    H, NH = layer.hidden_size, layer.num_heads
    QK = int(H * layer.qk_dim_factor)
    projected, gates = (x @ _parameter(layer, f"{part}_{name}").T for part in ("weight_ih", "weight_gate"))
    if layer.bias:
        projected, gates = projected + _parameter(layer, f"bias_{name}"), gates + _parameter(layer, f"bias_gate_{name}")
    q, k = projected[:, :QK].reshape(1, NH, QK // NH), projected[:, QK : 2 * QK].reshape(1, NH, QK // NH)
    v, o = projected[:, 2 * QK : 2 * QK + H].reshape(1, NH, H // NH), projected[:, 2 * QK + H :]
    i, f = gates[:, :NH], gates[:, NH:]
    h, state = functional.mlstm_step(
        q, k, v, i, f, state, igate=layer.igate, normalize=layer.normalize, backend="reference"
    )  # fmt: skip
    if layer.normalize:
        h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        h = h * _parameter(layer, f"weight_norm_{name}").reshape(NH, H // NH)
    return h.reshape(1, H) / (1 + (-o).exp()), state
