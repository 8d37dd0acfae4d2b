"""The sLSTM layer and its post up-projection block (arXiv 2405.04517, figure 10).

c = SiLU(conv(x));  i, f = blockdiag(c);  z, o = blockdiag(x);  y = norm(dropout(slstm(i, f, z, o)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .. import functional
from ..ops import block_step_cpu
from ..states import SLSTMState, state_dtype
from ..weights import are_plain, fill_, under_autocast
from .conv import CausalConv1d
from .feedforward import FeedForwardConfig, GatedFeedForward
from .headwise import LinearHeadwise, joint
from .init import linspace_bias, powerlaw_blockdependent, uniform_
from .norms import LayerNorm, MultiHeadLayerNorm
from .residual import LayerState, ResidualBlock, check_input, layer_state

BIAS_INITS = ("powerlaw_blockdependent", "small_init", "standard", "zeros")
RECURRENT_WEIGHT_INITS = ("zeros", "standard")


@dataclass
class sLSTMCellConfig:
    """Fields and defaults of `xlstm` 2.0.6.

    Fields that choose an official kernel, its dtypes or its memory layout (`backend`, `batch_size`, `*_shape`, `dtype*`,
    `enable_automatic_mixed_precision`) are accepted and do not bind us. Fields that would change the result and that are not
    implemented raise ValueError.
    """

    hidden_size: int = -1
    num_heads: int = 4
    num_states: int = 4
    backend: Literal["vanilla", "cuda"] = "cuda"
    function: str = "slstm"
    bias_init: Literal["powerlaw_blockdependent", "small_init", "standard", "zeros"] = "powerlaw_blockdependent"
    recurrent_weight_init: Literal["zeros", "standard"] = "zeros"

    _block_idx: int | None = 0
    _num_blocks: int | None = 1

    num_gates: int = 4
    gradient_recurrent_cut: bool = False
    gradient_recurrent_clipval: float | None = None
    forward_clipval: float | None = None

    batch_size: int = 8
    input_shape: Literal["BSGNH", "SBGNH"] = "BSGNH"
    internal_input_shape: Literal["SBNGH", "SBGNH", "SBNHG"] = "SBNGH"
    output_shape: Literal["BNSH", "SBH", "BSH", "SBNH"] = "BNSH"

    constants: dict = field(default_factory=dict)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    dtype_b: Literal["bfloat16", "float16", "float32"] | None = "float32"
    dtype_r: Literal["bfloat16", "float16", "float32"] | None = None
    dtype_w: Literal["bfloat16", "float16", "float32"] | None = None
    dtype_g: Literal["bfloat16", "float16", "float32"] | None = None
    dtype_s: Literal["bfloat16", "float16", "float32"] | None = None
    dtype_a: Literal["bfloat16", "float16", "float32"] | None = None

    enable_automatic_mixed_precision: bool = True
    initial_val: Any = 0.0  # float | Sequence[float], a union that OmegaConf.structured does not take

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def __post_init__(self) -> None:
        if self.num_heads <= 0:
            self.num_heads = 1
        implemented = {
            "function": "slstm",
            "num_states": 4,
            "num_gates": 4,
            "gradient_recurrent_cut": False,
            "gradient_recurrent_clipval": None,
            "forward_clipval": None,
            "constants": {},
        }
        for name, only in implemented.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {only!r}, the only value that is implemented")
        for name, allowed in (("bias_init", BIAS_INITS), ("recurrent_weight_init", RECURRENT_WEIGHT_INITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")
        # As the official package derives them: unset dtypes follow the others.
        self.dtype_b = self.dtype_b or self.dtype
        self.dtype_a = self.dtype_a or self.dtype_b
        self.dtype_r = self.dtype_r or self.dtype
        self.dtype_w = self.dtype_w or self.dtype
        self.dtype_s = self.dtype_s or self.dtype_w
        self.dtype_g = self.dtype_g or self.dtype_r


@dataclass
class sLSTMLayerConfig(sLSTMCellConfig):
    """Fields and defaults of `xlstm` 2.0.6. `conv1d_kernel_size` 0 means no convolution."""

    embedding_dim: int = -1
    num_heads: int = 4
    conv1d_kernel_size: int = 4
    group_norm_weight: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.hidden_size = self.embedding_dim
        super().__post_init__()


@dataclass
class sLSTMBlockConfig:
    """Fields and defaults of `xlstm` 2.0.6. `feedforward` None leaves the feed-forward network out."""

    slstm: sLSTMLayerConfig = field(default_factory=sLSTMLayerConfig)
    feedforward: FeedForwardConfig | None = field(default_factory=FeedForwardConfig)

    _num_blocks: int | None = None
    _block_idx: int | None = None

    def __post_init__(self) -> None:
        self.slstm._block_idx = self._block_idx
        self.slstm._num_blocks = self._num_blocks
        self.slstm.__post_init__()
        if self.feedforward is not None:
            self.feedforward.__post_init__()


class sLSTMCell(nn.Module):
    """The recurrence and its parameters, under the official names.

    `_recurrent_kernel_` (NH, 4 DH, DH) indexed [head, (gate, out), in] and `_bias_` (4 D) indexed (gate, head, unit), gates in
    the order i, f, z, o: the official package's "vanilla" layouts, and the only ones we save. Its "cuda" layouts, (NH, DH, 4 DH)
    indexed [head, in, (gate, out)] and (head, gate, unit), are recognised by the shape of the kernel and turned on loading.
    """

    def __init__(self, config: sLSTMCellConfig):
        super().__init__()
        self.config = config
        if config.hidden_size < 1 or config.hidden_size % config.num_heads:
            raise ValueError(f"num_heads: got {config.num_heads}, expected a divisor of the embedding_dim, {config.hidden_size}")
        NH, DH = config.num_heads, config.head_dim
        self._recurrent_kernel_ = nn.Parameter(torch.empty(NH, 4 * DH, DH))
        self._bias_ = nn.Parameter(torch.empty(4 * NH * DH))
        self.register_load_state_dict_pre_hook(_turn_cuda_layout)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"{self.config.hidden_size}, num_heads={self.config.num_heads}"

    @property
    def R(self) -> Tensor:
        """(4, NH, DH, DH) indexed [gate, head, out, in], a view of the parameter, or of its copy under autocast."""
        NH, DH = self.config.num_heads, self.config.head_dim
        return under_autocast(self._recurrent_kernel_).view(NH, 4, DH, DH).transpose(0, 1)

    @property
    def b(self) -> Tensor:
        """(4, NH, DH), likewise."""
        return under_autocast(self._bias_).view(4, self.config.num_heads, self.config.head_dim)

    def reset_parameters(self) -> None:
        """`recurrent_weight_init` for the kernel, `bias_init` for the bias; only forget gates get a bias unless "standard"."""
        config = self.config
        if config.recurrent_weight_init == "zeros":
            nn.init.zeros_(self._recurrent_kernel_)
        else:
            uniform_(self._recurrent_kernel_, config.hidden_size)
        if config.bias_init == "standard":
            uniform_(self._bias_, config.hidden_size)
            return
        bias = self._bias_
        values = torch.zeros(4, config.num_heads, config.head_dim, dtype=bias.dtype, device=bias.device)
        if config.bias_init == "powerlaw_blockdependent":
            values[1] = powerlaw_blockdependent(config.head_dim, config._block_idx, config._num_blocks, bias)
        elif config.bias_init == "small_init":
            values[1] = linspace_bias(config.head_dim, 3.0, 6.0, bias)
        fill_(bias, values.flatten())

    def forward(
        self,
        x: Tensor,
        state: Tensor | Sequence[Tensor] | None = None,
        backend: str | None = None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, S, 4, NH, DH) -> h (B, S, NH, DH) and the state (4, B, D) of h, c, n, m after the last step."""
        before = None if state is None else _by_head(state, x, x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1)
        h, last = functional.slstm(
            x, self.R, self.b, state=before, return_state=True, reset=reset, cu_seqlens=cu_seqlens, backend=backend
        )
        return h, torch.stack(tuple(last)).flatten(2)

    def step(
        self, x: Tensor, state: Tensor | Sequence[Tensor] | None = None, backend: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """One token, x (B, 4, NH, DH): h (B, NH, DH) and the new state (4, B, D)."""
        before = _fresh(x) if state is None else _by_head(state, x, x.shape[0])
        h, last = functional.slstm_step(x, self.R, self.b, before, backend=backend)
        return h, torch.stack(tuple(last)).flatten(2)


def _fresh(like: Tensor) -> SLSTMState:
    """The state before the first step; ``like`` is x (B, 4, NH, DH)."""
    B, _, NH, DH = like.shape
    return SLSTMState(*like.new_zeros((4, B, NH, DH), dtype=state_dtype(like)).unbind(0))


def _by_head(state: Tensor | Sequence[Tensor], like: Tensor, B: int) -> SLSTMState:
    """The official state (4, B, D) as h, c, n, m, each (B, NH, DH), in the dtype of states; ``like`` is x (..., 4, NH, DH)."""
    NH, DH = like.shape[-2:]
    if not isinstance(state, Tensor):
        state = torch.stack(tuple(state))
    if state.shape != (4, B, NH * DH):
        raise ValueError(f"slstm_state: got shape {tuple(state.shape)}, expected (4, B, D) = {(4, B, NH * DH)}")
    return SLSTMState(*state.to(state_dtype(like)).view(4, B, NH, DH).unbind(0))


def _turn_cuda_layout(cell: sLSTMCell, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: kernel and bias from the official "cuda" layout to ours, if the kernel's shape says so."""
    kernel, bias = (state_dict.get(prefix + name) for name in ("_recurrent_kernel_", "_bias_"))
    NH, DH = cell.config.num_heads, cell.config.head_dim
    if not isinstance(kernel, Tensor) or kernel.shape not in ((NH, DH, 4 * DH), (NH, DH, 4, DH)):
        return
    state_dict[prefix + "_recurrent_kernel_"] = kernel.reshape(NH, DH, 4, DH).permute(0, 2, 3, 1).reshape(NH, 4 * DH, DH)
    if isinstance(bias, Tensor) and bias.numel() == 4 * NH * DH:
        state_dict[prefix + "_bias_"] = bias.reshape(NH, 4, DH).transpose(0, 1).reshape(-1)


class sLSTMLayer(nn.Module):
    """Convolution, block-diagonal gates, the sLSTM, a norm of each head. Input and output (B, S, D)."""

    config_class = sLSTMLayerConfig

    def __init__(self, config: sLSTMLayerConfig):
        super().__init__()
        self.config = config
        D, NH = config.embedding_dim, config.num_heads
        if D < 1:
            raise ValueError(f"embedding_dim: got {D}, expected at least 1")
        if config.conv1d_kernel_size < 0:
            raise ValueError(f"conv1d_kernel_size: got {config.conv1d_kernel_size}, expected at least 0 (0 is no convolution)")
        self.conv1d = CausalConv1d(D, config.conv1d_kernel_size) if config.conv1d_kernel_size > 0 else None
        self.fgate = LinearHeadwise(D, NH)
        self.igate = LinearHeadwise(D, NH)
        self.zgate = LinearHeadwise(D, NH)
        self.ogate = LinearHeadwise(D, NH)
        self.slstm_cell = sLSTMCell(config)
        self.group_norm = MultiHeadLayerNorm(D, weight=config.group_norm_weight)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small init of the gates' input weights (for D inputs); recurrent kernel and bias as their config says."""
        if self.conv1d is not None:
            self.conv1d.reset_parameters()
        for gate in (self.fgate, self.igate, self.zgate, self.ogate):
            gate.reset_parameters(self.config.embedding_dim)
        self.slstm_cell.reset_parameters()
        self.group_norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        return_last_state: bool = False,
        *,
        slstm_state: Tensor | Sequence[Tensor] | None = None,
        conv_state: Sequence[Tensor] | Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        cp_group: Any = None,
        backend: str | None = None,
    ) -> Any:
        """A sequence or a piece of one.

        Args:
            x: (B, S, D), any S.
            state: {"slstm_state": (4, B, D) of h, c, n, m, "conv_state": (inputs (B, K, D),)} before the first step, the official
                form; None or a missing key is fresh. The two may also be given as keywords.
            return_last_state: also return the state after the last step, in the same form.
            cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, states have N rows.
            reset: bool (B, S); True starts that sample afresh before that step, the convolution too.
            cp_group: of one rank, or None: h feeds back into the gates, so the pieces of a sequence cannot run side by side.
            backend: as in `xlstm_cuda.functional`; None goes by the device of the tensors.

        Returns:
            y (B, S, D), or (y, state). Differentiable, the states included; the given state is left as it is.
        """
        piece, cu_seqlens = check_input(x, self.config.embedding_dim, False, cu_seqlens, reset, cp_group, state)
        if piece is not None:
            raise ValueError(
                "cp_group: got one for an sLSTM block, expected None: h feeds back, so no rank can begin before the last"
            )
        before = layer_state(state, {"slstm_state": slstm_state, "conv_state": conv_state})
        c = x if self.conv1d is None else silu(self.conv1d(x, before["conv_state"], cu_seqlens, reset))
        h, last = self.slstm_cell(self._gates(c, x), before["slstm_state"], backend, cu_seqlens, reset)
        y = self.group_norm(self.dropout(h))
        if not return_last_state:
            return y
        inputs = None if self.conv1d is None else self.conv1d.last_inputs(x, before["conv_state"], cu_seqlens, reset)
        return y, {"conv_state": inputs, "slstm_state": last}

    def step(
        self,
        x: Tensor,
        state: LayerState | None = None,
        *,
        slstm_state: Tensor | Sequence[Tensor] | None = None,
        conv_state: Sequence[Tensor] | Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """One token, x (B, 1, D): y (B, 1, D) and the new state; arguments as in `forward`."""
        check_input(x, self.config.embedding_dim, single_step=True)
        before = layer_state(state, {"slstm_state": slstm_state, "conv_state": conv_state})
        x, inputs = x.squeeze(1), None
        c = x
        if self.conv1d is not None:
            c, inputs = self.conv1d.step(x, before["conv_state"])
            c = silu(c)
        h, last = self.slstm_cell.step(self._gates(c, x), before["slstm_state"], backend)
        if self.dropout.training:
            h = self.dropout(h)
        return self.group_norm(h).unsqueeze(1), {"conv_state": inputs, "slstm_state": last}

    def _gates(self, c: Tensor, x: Tensor) -> Tensor:
        """c, x (..., D) -> gates (..., 4, NH, DH) in the order i, f, z, o."""
        # The official layer drives the input gate by the weight named fgate, the forget gate by igate; checkpoints depend on it.
        gates = torch.cat([joint(c, self.fgate, self.igate), joint(x, self.zgate, self.ogate)], -2)
        return gates.movedim(0, -2)


class sLSTMBlock(ResidualBlock):
    """x + sLSTMLayer(LayerNorm(x)), then x + FeedForward(LayerNorm(x)) unless the config has none."""

    config_class = sLSTMBlockConfig

    def __init__(self, config: sLSTMBlockConfig):
        super().__init__()
        self.config = config
        D = config.slstm.embedding_dim
        self.xlstm_norm = LayerNorm(D)
        self.xlstm = sLSTMLayer(config.slstm)
        if config.feedforward is None:
            self.ffn_norm = None
            self.ffn = None
        else:
            config.feedforward.embedding_dim = D
            config.feedforward._num_blocks = config._num_blocks or 1
            config.feedforward.__post_init__()
            self.ffn_norm = LayerNorm(D)
            self.ffn = GatedFeedForward(config.feedforward)

    def _step_in_one_call(self, x: Tensor, state: LayerState, in_place: bool) -> tuple[Tensor, dict[str, Any]] | None:
        block: Any = self._modules
        ffn: Any
        ffn_norm: Any
        layer, norm, ffn, ffn_norm = block["xlstm"], block["xlstm_norm"], self.ffn, self.ffn_norm
        parts = layer._modules
        conv, cell, group_norm = layer.conv1d, parts["slstm_cell"], parts["group_norm"]
        # The official layer drives the input gate by the weight named fgate, the forget gate by igate.
        gates = [parts[name] for name in ("fgate", "igate", "zgate", "ogate")]
        modules, kinds = [self, norm, layer, cell, group_norm, *gates], [*_PLAIN]
        taps: Any = None
        if conv is not None:
            taps = conv._modules["conv"]
            modules += conv, taps
            kinds += CausalConv1d, nn.Conv1d
        if ffn is not None:
            modules += ffn_norm, ffn, *(linears := (ffn._modules["proj_up"], ffn._modules["proj_down"]))
            kinds += LayerNorm, GatedFeedForward, nn.Linear, nn.Linear
        if not are_plain(modules, kinds) or not state.keys() <= {"slstm_state", "conv_state"} or parts["dropout"].training:
            return None
        of_ffn: list[Any] = [None] * 5
        if ffn is not None:
            if ffn.config.act_fn != "gelu" or ffn._modules["dropout"].training:
                return None
            of_ffn = [ffn_norm.weight, *(weight for one in linears for weight in one._parameters.values())]
        weights = [
            norm.weight, *([None] * 2 if taps is None else taps._parameters.values()),
            *[gate._parameters["weight"] for gate in gates], *cell._parameters.values(), group_norm.weight, *of_ffn,
        ]  # fmt: skip
        held, before, config = state.get("conv_state"), state.get("slstm_state"), self.config.slstm
        if (before is not None and not isinstance(before, Tensor)) or (None in weights[1:3] and taps is not None):
            return None
        whole = block_step_cpu.slstm(
            x, (config.embedding_dim, config.num_heads, config.conv1d_kernel_size, 0 if ffn is None else ffn.config._proj_up_dim),
            (norm.eps, group_norm.eps, 0.0 if ffn is None else ffn_norm.eps), weights,
            held if held is None or isinstance(held, Tensor) else held[0], before, in_place,
        )  # fmt: skip
        if whole is None:
            return None
        y, window, last = whole
        return y, {"conv_state": None if window is None else (window,), "slstm_state": last}


_PLAIN = [sLSTMBlock, LayerNorm, sLSTMLayer, sLSTMCell, MultiHeadLayerNorm, *[LinearHeadwise] * 4]
