"""xLSTMLarge, the architecture of xLSTM 7B (arXiv 2503.13427).

block:  x + out_proj(sigmoid(o) * norm(mlstm(q, k, v, cap(i), cap(f)))) of RMSNorm(x), then x + SwiGLU(RMSNorm(x))
model:  embedding, blocks, RMSNorm, head, cap;  cap(x) = c tanh(x / c)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm, silu

from .. import checks, functional
from ..ops import context
from ..ops.context import Piece
from .language_model import at_steps

#: {block: (C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH, 1))}; None or a missing block is fresh.
LargeState = Mapping[int, Sequence[Tensor]]


@dataclass
class xLSTMLargeConfig:
    """Fields and defaults of `xlstm` 2.0.6.

    Fields that choose an official kernel, its chunks or its dtypes (`*_kernel`, `mode`, `chunk_size`, `*_dtype`) are accepted and
    do not bind us: every mode takes any sequence length and trains; states are float32.
    """

    embedding_dim: int
    num_heads: int
    num_blocks: int
    vocab_size: int
    use_bias: bool = False
    norm_eps: float = 1e-6
    norm_reduction_force_float32: bool = True
    add_out_norm: bool = True

    qk_dim_factor: float = 0.5
    v_dim_factor: float = 1.0

    chunkwise_kernel: str = "chunkwise--triton_limit_chunk"
    sequence_kernel: str = "native_sequence__triton"
    step_kernel: str = "triton"
    mode: Literal["train", "train_with_padding", "inference"] = "train"
    chunk_size: int = 64
    return_last_states: bool = False
    autocast_kernel_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    eps: float = 1e-6
    inference_state_dtype: Literal["bfloat16", "float16", "float32"] = "float32"

    ffn_proj_factor: float = 2.6667
    ffn_round_up_to_multiple_of: int = 64

    gate_soft_cap: float | None = 15.0
    output_logit_soft_cap: float | None = 30.0

    weight_mode: Literal["single", "fused"] = "single"

    @property
    def qk_dim(self) -> int:
        return int(self.embedding_dim * self.qk_dim_factor)

    @property
    def v_dim(self) -> int:
        return int(self.embedding_dim * self.v_dim_factor)

    @property
    def ffn_dim(self) -> int:
        multiple = self.ffn_round_up_to_multiple_of
        return int((self.embedding_dim * self.ffn_proj_factor + multiple - 1) // multiple * multiple)

    def check(self) -> None:
        """ValueError for a model that cannot be built."""
        checks.choice("weight_mode", self.weight_mode, ("single", "fused"))
        checks.choice("mode", self.mode, ("train", "train_with_padding", "inference"))
        for name, least in (("embedding_dim", 1), ("num_heads", 1), ("num_blocks", 0), ("vocab_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.ffn_round_up_to_multiple_of < 1:
            raise ValueError(f"ffn_round_up_to_multiple_of: got {self.ffn_round_up_to_multiple_of}, expected at least 1")
        if not (math.isfinite(self.ffn_proj_factor) and self.ffn_dim >= 1):
            raise ValueError(f"ffn_proj_factor: got {self.ffn_proj_factor}, expected a positive number")
        for name in ("qk_dim", "v_dim"):
            if getattr(self, name) < 1 or getattr(self, name) % self.num_heads:
                raise ValueError(f"num_heads: got {self.num_heads}, expected a divisor of {name}, {getattr(self, name)}")


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap); None caps nothing."""
    return x if cap is None else cap * torch.tanh(x / cap)


class _Norm(nn.Module):
    """Scale and optional shift after a normalisation over the last axis, reduced in float32 or wider."""

    bias: nn.Parameter | None

    def __init__(self, features: int, config: xLSTMLargeConfig):
        super().__init__()
        self.eps, self.wide = config.norm_eps, config.norm_reduction_force_float32
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features)) if config.use_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, bias={self.bias is not None}, eps={self.eps}"

    def _widen(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.wide else x

    def _scale(self, x: Tensor) -> Tensor:
        return x * self.weight if self.bias is None else x * self.weight + self.bias


class RMSNorm(_Norm):
    """(..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(rms_norm(self._widen(x), x.shape[-1:], None, self.eps).to(x.dtype))


class MultiHeadLayerNorm(_Norm):
    """Layer norm of each head: (..., NH, DH) -> (..., NH*DH)."""

    def forward(self, h: Tensor) -> Tensor:
        return self._scale(layer_norm(self._widen(h), h.shape[-1:], None, None, self.eps).to(h.dtype).flatten(-2))


def _join(state_dict: dict[str, Tensor], prefix: str, parts: Sequence[str], fused: str) -> None:
    """Before loading: the weights of several linear maps as those of one."""
    for kind in ("weight", "bias"):
        keys = [f"{prefix}{part}.{kind}" for part in parts]
        if all(key in state_dict for key in keys):
            state_dict[f"{prefix}{fused}.{kind}"] = torch.cat([state_dict.pop(key) for key in keys])


def _split(state_dict: dict[str, Tensor], prefix: str, parts: Sequence[str], fused: str, sizes: Sequence[int]) -> None:
    """The inverse of `_join`; a tensor of another size is left for load_state_dict to report."""
    for kind in ("weight", "bias"):
        key = f"{prefix}{fused}.{kind}"
        if key in state_dict and state_dict[key].shape[0] == sum(sizes):
            for part, piece in zip(parts, state_dict.pop(key).split(list(sizes))):
                state_dict[f"{prefix}{part}.{kind}"] = piece


def _recognise_weight_mode(module: _Fusible, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for fused, parts, sizes in module.fusions:
        if module.config.weight_mode == "fused":
            _join(state_dict, prefix, parts, fused)
        else:
            _split(state_dict, prefix, parts, fused, sizes)


class _Fusible(nn.Module):
    """Linear maps that weight_mode "fused" keeps as one; weights of either mode are recognised on loading."""

    config: xLSTMLargeConfig
    fusions: Sequence[tuple[str, Sequence[str], Sequence[int]]]  # fused name, names of the parts, their output sizes

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__()
        self.config = config
        self.register_load_state_dict_pre_hook(_recognise_weight_mode)


class LargeFeedForward(_Fusible):
    """proj_down(SiLU(gate) * up), (..., D) -> (..., D)."""

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__(config)
        D, F, bias = config.embedding_dim, config.ffn_dim, config.use_bias
        self.fusions = (("proj_up_gate_z", ("proj_up_gate", "proj_up"), (F, F)),)
        if config.weight_mode == "fused":
            self.proj_up_gate_z = nn.Linear(D, 2 * F, bias)
        else:
            self.proj_up_gate = nn.Linear(D, F, bias)
            self.proj_up = nn.Linear(D, F, bias)
        self.proj_down = nn.Linear(F, D, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.weight_mode == "fused":
            gate, up = self.proj_up_gate_z(x).chunk(2, -1)
        else:
            gate, up = self.proj_up_gate(x), self.proj_up(x)
        return self.proj_down(silu(gate) * up)


class Run(NamedTuple):
    """How every block of one call computes: by which backend, and what begins where on S. Fields as of `xLSTMLarge.forward`."""

    backend: str | None = None
    cu_seqlens: Tensor | None = None
    reset: Tensor | None = None
    piece: Piece | None = None  #: of the context-parallel group

    @property
    def in_pieces(self) -> bool:
        """Whether more begins on S than every sample at its start."""
        return not (self.cu_seqlens is None and self.reset is None and self.piece is None)

    def rows(self, x: Tensor) -> int:
        """How many states x (B, S, D) has."""
        return x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


RUN = Run()


class LargeMLSTMLayer(_Fusible):
    """x (B, S, D), state (C, n, m) or None -> y (B, S, D), state."""

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__(config)
        D, NH, bias = config.embedding_dim, config.num_heads, config.use_bias
        qk, v = config.qk_dim, config.v_dim
        self.sizes = (qk, qk, v, v)
        self.fusions = (
            ("qkv_opreact", ("q", "k", "v", "ogate_preact"), self.sizes),
            ("ifgate_preact", ("igate_preact", "fgate_preact"), (NH, NH)),
        )
        if config.weight_mode == "fused":
            self.qkv_opreact = nn.Linear(D, sum(self.sizes), bias)
            self.ifgate_preact = nn.Linear(D, 2 * NH)
        else:
            self.q = nn.Linear(D, qk, bias)
            self.k = nn.Linear(D, qk, bias)
            self.v = nn.Linear(D, v, bias)
            self.ogate_preact = nn.Linear(D, v, bias)
            self.igate_preact = nn.Linear(D, NH)
            self.fgate_preact = nn.Linear(D, NH)
        self.multihead_norm = MultiHeadLayerNorm(v, config)
        self.out_proj = nn.Linear(v, D, bias)

    def forward(self, x: Tensor, state: Sequence[Tensor] | None, run: Run = RUN) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v, o, i, f = self._project(x)
        q, k, v = (part.unflatten(-1, (self.config.num_heads, -1)) for part in (q, k, v))
        i, f = (soft_cap(gate, self.config.gate_soft_cap) for gate in (i, f))
        options: dict[str, Any] = dict(eps=self.config.eps, backend=run.backend)
        before = None if state is None else _ours(state, q, v, run.rows(x))
        if before is not None and not run.in_pieces and x.shape[1] == 1:
            q, k, v, i, f = (part.squeeze(1) for part in (q, k, v, i, f))
            h, (C, n, m) = functional.mlstm_step(q, k, v, i, f, before, **options)
            h = h.unsqueeze(1)
        else:
            pieces = dict(reset=run.reset, cu_seqlens=run.cu_seqlens, cp_group=run.piece)
            options |= dict(state=before, return_state=True) | pieces
            h, (C, n, m) = functional.mlstm(q, k, v, i, f, **options)
        y = self.out_proj(torch.sigmoid(o) * self.multihead_norm(h))
        return y, (C, n, m.unsqueeze(-1))

    def extra_repr(self) -> str:
        return f"num_heads={self.config.num_heads}"

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """q, k, v, o, i, f of every step."""
        if self.config.weight_mode == "fused":
            return *self.qkv_opreact(x).split(self.sizes, -1), *self.ifgate_preact(x).chunk(2, -1)
        return [part(x) for part in (self.q, self.k, self.v, self.ogate_preact, self.igate_preact, self.fgate_preact)]


def _ours(state: Sequence[Tensor], q: Tensor, v: Tensor, B: int) -> tuple[Tensor, ...]:
    """The official state of B rows without the trailing axis of m, in the dtype of states."""
    if len(state) != 3:
        raise ValueError(f"state: got {len(state)} tensors, expected (C, n, m)")
    NH, DHQK = q.shape[-2:]
    expected = ((B, NH, DHQK, v.shape[-1]), (B, NH, DHQK), (B, NH, 1))
    for name, part, shape in zip("Cnm", state, expected):
        checks.shape(f"state.{name}", part, shape, {"C": "(B, NH, DHQK, DHHV)", "n": "(B, NH, DHQK)", "m": "(B, NH, 1)"}[name])
    C, n, m = (part.to(torch.float64 if q.dtype == torch.float64 else torch.float32) for part in state)
    return C, n, m.squeeze(-1)


class LargeBlock(nn.Module):
    """The residual block, (B, S, D) -> (B, S, D)."""

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__()
        self.norm_mlstm = RMSNorm(config.embedding_dim, config)
        self.mlstm_layer = LargeMLSTMLayer(config)
        self.norm_ffn = RMSNorm(config.embedding_dim, config)
        self.ffn = LargeFeedForward(config)

    def forward(self, x: Tensor, state: Sequence[Tensor] | None, run: Run = RUN) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, last = self.mlstm_layer(self.norm_mlstm(x), state, run)
        x = x + y
        return x + self.ffn(self.norm_ffn(x)), last


class LargeBackbone(nn.Module):
    """Blocks and the norm at their end."""

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__()
        self.blocks = nn.ModuleList(LargeBlock(config) for _ in range(config.num_blocks))
        self.out_norm = RMSNorm(config.embedding_dim, config) if config.add_out_norm else nn.Identity()

    def forward(self, x: Tensor, state: LargeState, run: Run = RUN) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
        last = {}
        for index, block in enumerate(self.blocks):
            x, last[index] = block(x, state.get(index), run)
        return self.out_norm(x), last


class xLSTMLarge(nn.Module):
    """Token ids (B, S) -> logits (B, S, vocab_size), or (logits, state) with `return_last_states`.

    Weights of either weight mode load into a model of either. Linear maps and the embedding start as PyTorch's own, as in the
    official package.

    Examples:
        >>> model = xLSTMLarge(xLSTMLargeConfig(embedding_dim=64, num_heads=2, num_blocks=2, vocab_size=100))
        >>> model(torch.randint(100, (2, 30))).shape
        torch.Size([2, 30, 100])
        >>> tokens, state = model.generate(torch.randint(100, (2, 30)), max_length=5)
        >>> tokens.shape
        torch.Size([2, 5])
    """

    config_class = xLSTMLargeConfig

    def __init__(self, config: xLSTMLargeConfig):
        super().__init__()
        config.check()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.backbone = LargeBackbone(config)
        self.lm_head = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)

    def reset_parameters(self) -> None:
        """PyTorch's initialisation of every linear map and the embedding, ones and zeros for norms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding, _Norm)):
                module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: LargeState | None = None,
        return_last_state: bool = False,
        *,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        cp_group: Any = None,
        backend: str | None = None,
    ) -> Any:
        """Any S; one token with a state takes the decode path. The given state is left as it is; differentiable.

        return_last_state: (logits, state) whatever the config's `return_last_states` says.
        cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, states have N rows.
        reset: bool (B, S); True starts that sample afresh before that step.
        cp_group: a process group whose ranks hold contiguous pieces of S, as in functional.mlstm.
        logits_to_keep: int64 (K,), the steps whose logits are wanted, (B, K, vocab_size); None is every step.
        """
        logits, last = self._run(x, state, backend, cu_seqlens, reset, logits_to_keep, cp_group)
        return (logits, last) if return_last_state or self.config.return_last_states else logits

    def step(
        self, x: Tensor, state: LargeState | None = None, *, backend: str | None = None
    ) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
        """One token: ids (B, 1) -> logits (B, 1, vocab_size) and the new state; the given state is left as it is."""
        if checks.tensor("x", x).dim() != 2 or x.shape[1] != 1:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, 1)")
        return self._run(x, state, backend)

    def _run(
        self,
        x: Tensor,
        state: LargeState | None,
        backend: str | None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        cp_group: Any = None,
    ) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
        checks.dtype("x", checks.tensor("x", x), (torch.int64, torch.int32))
        checks.rank("x", x, "(B, S)")
        piece, cu_seqlens = context.enter(cp_group, x, cu_seqlens, {"B": x.shape[0]}, state or None)
        if cu_seqlens is not None:
            checks.cu_seqlens(cu_seqlens, x.shape[0], x.shape[1], x.device)
        if reset is not None:
            checks.reset(reset, x.shape[0], x.shape[1], x.device)
        if state is not None and not isinstance(state, Mapping):
            raise TypeError(f"state: got {type(state).__name__}, expected a dictionary of block states")
        if unknown := set(state or {}) - set(range(self.config.num_blocks)):
            raise ValueError(f"state: got blocks {sorted(map(str, unknown))}, expected 0 to {self.config.num_blocks - 1}")
        y, last = self.backbone(self.embedding(x), state or {}, Run(backend, cu_seqlens, reset, piece))
        return soft_cap(self.lm_head(at_steps(y, logits_to_keep)), self.config.output_logit_soft_cap), last

    @torch.no_grad()
    def generate(
        self,
        prefill_tokens: Tensor,
        max_length: int,
        sampling_type: str = "greedy",
        state: LargeState | None = None,
        *,
        backend: str | None = None,
    ) -> tuple[Tensor | None, LargeState | None]:
        """Greedy continuation of prefill_tokens (B, S): tokens (B, max_length) and the state before the last of them.

        Time and memory per token do not depend on the past. max_length = 0 gives (None, state), as officially.
        """
        checks.choice("sampling_type", sampling_type, ("greedy",))
        tokens = prefill_tokens.unsqueeze(1) if prefill_tokens.dim() == 1 else prefill_tokens
        generated = []
        for _ in range(max_length):
            logits, state = self._run(tokens, state, backend)
            tokens = logits[:, -1:].argmax(-1)
            generated.append(tokens)
        return (torch.cat(generated, 1) if generated else None), state
