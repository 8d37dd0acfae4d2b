"""The mLSTM layer and its pre up-projection block (arXiv 2405.04517, figure 11).

(a, g) = proj_up(x);  c = SiLU(conv(a));  q, k = blockdiag(c);  v = blockdiag(a);  i, f = Linear(q, k, v)
y = proj_down((norm(mlstm(q, k, v, i, f)) + learnable_skip * c) * SiLU(g))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from .. import functional
from ..backends import resolve
from ..ops import block_step_cpu, mlstm_layer_cpu
from ..ops.mlstm_layer_cpu import MLSTMLayerWeights
from ..states import MLSTMState, state_dtype
from ..weights import are_plain, fill_, is_plain, under_autocast
from .conv import CausalConv1d
from .feedforward import UpProjConfigMixin
from .headwise import LinearHeadwise
from .init import linspace_bias, small_init_, wang_init_
from .norms import LayerNorm, MultiHeadLayerNorm
from .residual import LayerState, ResidualBlock, check_input, layer_state


@dataclass
class mLSTMLayerConfig(UpProjConfigMixin):
    """Fields and defaults of `xlstm` 2.0.6. `context_length` is accepted and limits nothing."""

    conv1d_kernel_size: int = 4
    qkv_proj_blocksize: int = 4
    num_heads: int = 4
    proj_factor: float = 2.0

    # set by the stack
    embedding_dim: int = -1
    bias: bool = False
    dropout: float = 0.0
    context_length: int = -1

    _num_blocks: int | None = 1
    _inner_embedding_dim: int | None = None

    def __post_init__(self) -> None:
        self._set_proj_up_dim(self.embedding_dim)
        self._inner_embedding_dim = self._proj_up_dim


@dataclass
class mLSTMBlockConfig:
    """Fields and defaults of `xlstm` 2.0.6."""

    mlstm: mLSTMLayerConfig = field(default_factory=mLSTMLayerConfig)

    _num_blocks: int | None = None
    _block_idx: int | None = None

    def __post_init__(self) -> None:
        self.mlstm._num_blocks = self._num_blocks
        self.mlstm.__post_init__()


class mLSTMCell(nn.Module):
    """Gates, recurrence and output norm. q, k, v (B, S, I) -> h (B, S, I), or one token by `step`.

    The state has the official form: C (B, NH, DH, DH), n (B, NH, DH, 1), m (B, NH, 1, 1), with 1/sqrt(DH) counted in k.
    """

    def __init__(self, features: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or features % num_heads:
            raise ValueError(f"num_heads: got {num_heads}, expected a divisor of the inner dimension, {features}")
        self.features, self.num_heads = features, num_heads
        self.igate = nn.Linear(3 * features, num_heads)
        self.fgate = nn.Linear(3 * features, num_heads)
        self.outnorm = MultiHeadLayerNorm(features)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"{self.features}, num_heads={self.num_heads}"

    def reset_parameters(self) -> None:
        """Gates that ignore their input: forget gates spaced over the heads from 3 to 6, input gates N(0, 0.1^2)."""
        self.outnorm.reset_parameters()
        nn.init.zeros_(self.fgate.weight)
        fill_(self.fgate.bias, linspace_bias(self.num_heads, 3.0, 6.0, self.fgate.bias))
        nn.init.zeros_(self.igate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Sequence[Tensor] | None = None,
        backend: str | None = None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        cp_group: Any = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """h (B, S, I) and the state after the last step."""
        B, S, _ = q.shape
        NH, DH = self.num_heads, self.features // self.num_heads
        i, f = self._gates(q, k, v)
        q, k, v = (x.view(B, S, NH, DH) for x in (q, k * DH**-0.5, v))
        before = None if state is None else _without_ones(state, q, B if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        h, (C, n, m) = functional.mlstm(
            q, k, v, i, f,
            state=before, return_state=True, scale=1.0, reset=reset, cu_seqlens=cu_seqlens, cp_group=cp_group, backend=backend,
        )  # fmt: skip
        return self.outnorm(h), (C, n.unsqueeze(-1), m[..., None, None])

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, state: Sequence[Tensor] | None = None, backend: str | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One token, q, k, v (B, I): h (B, I) and the new state."""
        B, NH, DH = q.shape[0], self.num_heads, self.features // self.num_heads
        gates = torch.cat([q, k, v], -1)
        i, f = self.igate(gates), self.fgate(gates)
        q, k, v = q.view(B, NH, DH), (k * DH**-0.5).view(B, NH, DH), v.view(B, NH, DH)
        before = _fresh(q) if state is None else _without_ones(state, q, B)
        h, (C, n, m) = functional.mlstm_step(q, k, v, i, f, before, scale=1.0, backend=backend)
        return self.outnorm(h), (C, n.unsqueeze(-1), m.view(B, NH, 1, 1))

    def _gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations i, f (B, S, NH): Linear(cat(q, k, v)), without writing the cat where the weights may be read."""
        if not (is_plain(self.igate, nn.Linear) and is_plain(self.fgate, nn.Linear)):
            inputs = torch.cat([q, k, v], -1)
            return self.igate(inputs), self.fgate(inputs)
        weight = torch.cat([under_autocast(self.igate.weight), under_autocast(self.fgate.weight)])
        bias = torch.cat([under_autocast(self.igate.bias), under_autocast(self.fgate.bias)])
        of_q, of_k, of_v = weight.split(self.features, 1)
        i, f = (linear(q, of_q, bias) + linear(k, of_k) + linear(v, of_v)).chunk(2, -1)
        return i, f


def _fresh(like: Tensor) -> MLSTMState:
    """The state before the first step; ``like`` is q (B, NH, DH)."""
    B, NH, DH = like.shape
    shapes = ((B, NH, DH, DH), (B, NH, DH), (B, NH))
    return MLSTMState(*(like.new_zeros(shape, dtype=state_dtype(like)) for shape in shapes))


def _without_ones(state: Sequence[Tensor], like: Tensor, B: int) -> MLSTMState:
    """The official state of B rows without its trailing axes of size 1, in the dtype of states; ``like`` is q (..., NH, DH)."""
    if len(state) != 3:
        raise ValueError(f"mlstm_state: got {len(state)} tensors, expected (C, n, m)")
    NH, DH, dtype = like.shape[-2], like.shape[-1], state_dtype(like)
    shapes = ((B, NH, DH, DH), (B, NH, DH), (B, NH))
    official = ((B, NH, DH, DH), (B, NH, DH, 1), (B, NH, 1, 1))
    parts = []
    for name, part, shape, expected in zip("Cnm", state, shapes, official):
        if part.dtype != dtype:
            part = part.to(dtype)
        if part.shape != shape:
            if part.shape != expected:
                raise ValueError(f"mlstm_state.{name}: got shape {tuple(part.shape)}, expected {expected}")
            part = part.reshape(shape)
        parts.append(part)
    return MLSTMState(*parts)


class mLSTMLayer(nn.Module):
    """Input and output (B, S, D); the inner width is I = proj_factor * D, rounded up to a multiple of 64."""

    config_class = mLSTMLayerConfig

    def __init__(self, config: mLSTMLayerConfig):
        super().__init__()
        self.config = config
        D, inner = config.embedding_dim, config._inner_embedding_dim
        if D < 1 or not inner:
            raise ValueError(f"mLSTMLayerConfig: got embedding_dim {D}, proj_factor {config.proj_factor}, expected both positive")
        if config.conv1d_kernel_size < 0:
            raise ValueError(f"conv1d_kernel_size: got {config.conv1d_kernel_size}, expected at least 0 (0 is no convolution)")
        if not 1 <= config.qkv_proj_blocksize <= inner:
            raise ValueError(f"qkv_proj_blocksize: got {config.qkv_proj_blocksize}, expected 1 to {inner}, the inner dimension")
        blocks = inner // config.qkv_proj_blocksize
        if inner % blocks:
            size = config.qkv_proj_blocksize
            raise ValueError(f"qkv_proj_blocksize: got {size}, expected a divisor of the inner dimension, {inner}")
        self.proj_up = nn.Linear(D, 2 * inner, bias=config.bias)
        self.q_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.k_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.v_proj = LinearHeadwise(inner, blocks, bias=config.bias)
        self.conv1d = CausalConv1d(inner, config.conv1d_kernel_size) if config.conv1d_kernel_size > 0 else None
        self.mlstm_cell = mLSTMCell(inner, config.num_heads)
        self.learnable_skip = nn.Parameter(torch.empty(inner))
        self.proj_down = nn.Linear(inner, D, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small init of proj_up and q, k, v (for D inputs), Wang init of proj_down, skip 1, zero biases; cell as documented."""
        D = self.config.embedding_dim
        small_init_(self.proj_up.weight, D)
        wang_init_(self.proj_down.weight, D, self.config._num_blocks)
        for projection in (self.proj_up, self.proj_down):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        for headwise in (self.q_proj, self.k_proj, self.v_proj):
            headwise.reset_parameters(D)
        if self.conv1d is not None:
            self.conv1d.reset_parameters()
        nn.init.ones_(self.learnable_skip)
        self.mlstm_cell.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        return_last_state: bool = False,
        *,
        mlstm_state: Sequence[Tensor] | None = None,
        conv_state: Sequence[Tensor] | Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        cp_group: Any = None,
        backend: str | None = None,
    ) -> Any:
        """A sequence or a piece of one.

        Args:
            x: (B, S, D), any S.
            state: {"mlstm_state": (C (B, NH, DH, DH), n (B, NH, DH, 1), m (B, NH, 1, 1)), "conv_state": (inputs (B, K, I),)}
                before the first step, the official form; None or a missing key is fresh. The two may also be given as keywords.
            return_last_state: also return the state after the last step, in the same form.
            cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, states have N rows.
            reset: bool (B, S); True starts that sample afresh before that step, the convolution too.
            cp_group: a process group whose ranks hold contiguous pieces of S, as in functional.mlstm.
            backend: as in `xlstm_cuda.functional`; None goes by the device of the tensors.

        Returns:
            y (B, S, D), or (y, state). Differentiable, the states included; the given state is left as it is.
        """
        before = layer_state(state, {"mlstm_state": mlstm_state, "conv_state": conv_state})
        given = any(part is not None for part in before.values())
        piece, cu_seqlens = check_input(x, self.config.embedding_dim, False, cu_seqlens, reset, cp_group, given)
        up = self.proj_up(x)
        a, gate = up.chunk(2, -1)
        if piece is not None and self.conv1d is not None:
            before["conv_state"] = self.conv1d.before(a, before["conv_state"], piece, cu_seqlens, reset)
        whole = None if piece is not None else self._as_one_node(up, before, return_last_state, cu_seqlens, reset, backend)
        if whole is not None:
            inner, last = whole
        else:
            c = silu(a if self.conv1d is None else self.conv1d(a, before["conv_state"], cu_seqlens, reset))
            q, k, v = self.q_proj(c), self.k_proj(c), self.v_proj(a)
            h, last = self.mlstm_cell(q, k, v, before["mlstm_state"], backend, cu_seqlens, reset, piece)
            inner = self._gated(h, c, gate)
        y = self._projected(inner)
        if not return_last_state:
            return y
        inputs = None if self.conv1d is None else self.conv1d.last_inputs(a, before["conv_state"], cu_seqlens, reset)
        return y, {"mlstm_state": last, "conv_state": inputs}

    def step(
        self,
        x: Tensor,
        state: LayerState | None = None,
        *,
        mlstm_state: Sequence[Tensor] | None = None,
        conv_state: Sequence[Tensor] | Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """One token, x (B, 1, D): y (B, 1, D) and the new state; arguments as in `forward`."""
        check_input(x, self.config.embedding_dim, single_step=True)
        before = layer_state(state, {"mlstm_state": mlstm_state, "conv_state": conv_state})
        a, gate = self.proj_up(x.squeeze(1)).chunk(2, -1)
        c, inputs = (a, None) if self.conv1d is None else self.conv1d.step(a, before["conv_state"])
        c = silu(c)
        h, last = self.mlstm_cell.step(self.q_proj(c), self.k_proj(c), self.v_proj(a), before["mlstm_state"], backend)
        return self._projected(self._gated(h, c, gate)).unsqueeze(1), {"mlstm_state": last, "conv_state": inputs}

    def _gated(self, h: Tensor, c: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(h, self.learnable_skip, c) * silu(gate)

    def _projected(self, inner: Tensor) -> Tensor:
        y = self.proj_down(inner)
        return self.dropout(y) if self.dropout.training else y

    def _as_one_node(
        self,
        up: Tensor,
        before: dict[str, Any],
        return_last_state: bool,
        cu_seqlens: Tensor | None,
        reset: Tensor | None,
        backend: str | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None] | None:
        """What lies between the two projections by native passes on a CPU, and the state if asked for; None: call the modules."""
        conv_state, state, conv = before["conv_state"], before["mlstm_state"], self.conv1d
        if reset is not None or (cu_seqlens is not None and conv_state is not None) or resolve(backend, up.device) != "cpu":
            return None
        weights = self._plain_weights()
        if conv is None or weights is None:
            return None
        a, NH = up.chunk(2, -1)[0], self.mlstm_cell.num_heads
        sizes = a.shape[-1], NH, conv.kernel_size, self.q_proj.width
        if not mlstm_layer_cpu.usable(up, weights, sizes, *(state or ()), *(() if conv_state is None else conv_state)):
            return None
        held = None if conv_state is None else conv.inputs_before(a, conv_state)
        B = up.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        start = None if state is None else _without_ones(state, a.unflatten(-1, (NH, -1)), B)
        eps = self.mlstm_cell.outnorm.eps
        y, (C, n, m) = mlstm_layer_cpu.mlstm_layer(up, weights, held, start, cu_seqlens, eps, return_last_state)
        return y, (C, n.unsqueeze(-1), m[..., None, None]) if return_last_state else None

    def _plain_weights(self, outer: tuple[Any, ...] = (), kinds: tuple[type[nn.Module], ...] = ()) -> MLSTMLayerWeights | None:
        """The weights between the two projections where reading them is the same as calling their modules and ``outer`` ones."""
        parts: Any = self._modules
        conv: Any = self.conv1d
        q, k, v, cell = parts["q_proj"], parts["k_proj"], parts["v_proj"], parts["mlstm_cell"]
        if conv is None:
            return None
        taps, (igate, fgate, norm) = conv._modules["conv"], cell._modules.values()
        if not are_plain((*outer, self, conv, taps, q, k, v, cell, igate, fgate, norm), (*kinds, *_INNER)):
            return None
        t, a, b, c, i, f = (module._parameters for module in (taps, q, k, v, igate, fgate))
        return MLSTMLayerWeights(
            t["weight"], t["bias"], a["weight"], b["weight"], c["weight"], q.bias, k.bias, v.bias,
            i["weight"], f["weight"], i["bias"], f["bias"], norm.weight, self.learnable_skip,
        )  # fmt: skip


class mLSTMBlock(ResidualBlock):
    """x + mLSTMLayer(LayerNorm(x)); no feed-forward network."""

    config_class = mLSTMBlockConfig

    def __init__(self, config: mLSTMBlockConfig):
        super().__init__()
        self.config = config
        self.xlstm_norm = LayerNorm(config.mlstm.embedding_dim)
        self.xlstm = mLSTMLayer(config.mlstm)
        self.ffn_norm = None
        self.ffn = None

    def _step_in_one_call(self, x: Tensor, state: LayerState, in_place: bool) -> tuple[Tensor, dict[str, Any]] | None:
        layer: Any = self._modules["xlstm"]
        parts = layer._modules
        up, down, dropout = parts["proj_up"], parts["proj_down"], parts["dropout"]
        weights = layer._plain_weights((self, self._modules["xlstm_norm"], up, down), _OUTER)
        if weights is None or weights.conv_bias is None or dropout.training or not state.keys() <= {"mlstm_state", "conv_state"}:
            return None
        norm, cell = self.xlstm_norm, parts["mlstm_cell"]
        held, before = state.get("conv_state"), state.get("mlstm_state")
        I, NH = layer.config._inner_embedding_dim, cell.num_heads
        whole = block_step_cpu.mlstm(
            x, (layer.config.embedding_dim, I, NH, parts["conv1d"].kernel_size, parts["q_proj"].width),
            (norm.eps, cell._modules["outnorm"].eps),
            (norm.weight, *up._parameters.values(), *down._parameters.values(), *weights),
            held if held is None or isinstance(held, Tensor) else held[0], before, in_place,
        )  # fmt: skip
        if whole is None:
            return None
        y, window, last = whole
        return y, {"mlstm_state": last, "conv_state": (window,)}


_OUTER = (mLSTMBlock, LayerNorm, nn.Linear, nn.Linear)
_INNER = (
    mLSTMLayer, CausalConv1d, nn.Conv1d, LinearHeadwise, LinearHeadwise, LinearHeadwise, mLSTMCell, nn.Linear, nn.Linear,
    MultiHeadLayerNorm,
)  # fmt: skip
