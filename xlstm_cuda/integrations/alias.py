"""`import xlstm` and its public submodules resolved to this package, for code that is written against the official one.

Most official names are ours under the same name. Those with another signature here are the thin classes below: the official
arguments and layouts around our modules. Names without a counterpart say so when they are asked for.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from .. import blocks, functional, models
from ..blocks import feedforward, headwise, init, norms
from ..blocks import mlstm as matrix_block
from ..blocks import slstm as scalar_block
from ..models import large
from . import patch
from .patch import Handle, IntegrationError, Swap
from .xlstm import StatesOfEveryStep

NAME = "alias_xlstm"
VERSION = "2.0.6"  #: of the official package whose names these are


def alias_xlstm() -> Handle:
    """Makes ``import xlstm`` and its public submodules resolve to this package, until the handle's `disable`.

    Raises:
        IntegrationError: the official package, or another of this name, is imported already.
    """
    return patch.enable(NAME, None, _swaps)


def _swaps(_: str | None) -> list[Swap]:
    if taken := [name for name in sys.modules if name.split(".")[0] == "xlstm"]:
        raise IntegrationError(
            f"alias_xlstm(): {taken[0]} is imported already, expected the call before the first import of xlstm"
        )
    return [Swap(sys.modules, name, _always(module)) for name, module in _modules().items()]


def _always(module: ModuleType) -> Callable[[Any], ModuleType]:
    return lambda _: module


class LayerNorm(norms.LayerNorm):
    """`xlstm.components.ln.LayerNorm`: no bias, and a weight that is stored as a difference from 1."""

    def __init__(self, ndim: int = -1, weight: bool = True, bias: bool = False, eps: float = 1e-5, residual_weight: bool = True):
        _only(bias=(bias, False), residual_weight=(residual_weight, True))
        super().__init__(ndim, weight, eps)


class MultiHeadLayerNorm(LayerNorm):
    """`xlstm.components.ln.MultiHeadLayerNorm`: (B, NH, S, DH) -> (B, NH, S, DH)."""

    def forward(self, input: Tensor) -> Tensor:
        normed = norms.MultiHeadLayerNorm.forward(self, input.transpose(1, 2))  # type: ignore[arg-type]
        return normed.unflatten(-1, (input.shape[1], -1)).transpose(1, 2)


@dataclasses.dataclass
class LinearHeadwiseExpandConfig:
    """Fields and defaults of `xlstm` 2.0.6."""

    in_features: int = 0
    num_heads: int = -1
    expand_factor_up: float = 1
    _out_features: int = -1
    bias: bool = True
    trainable_weight: bool = True
    trainable_bias: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_heads <= self.in_features or self.in_features % self.num_heads:
            raise ValueError(f"num_heads: got {self.num_heads}, expected a divisor of in_features, {self.in_features}")
        if self._out_features < 0:
            self._out_features = round(self.expand_factor_up * self.in_features)


class LinearHeadwiseExpand(headwise.LinearHeadwise):
    """`xlstm.components.linear_headwise.LinearHeadwiseExpand`, where it does not expand."""

    config_class = LinearHeadwiseExpandConfig

    def __init__(self, config: LinearHeadwiseExpandConfig):
        _only(_out_features=(config._out_features, config.in_features))
        super().__init__(config.in_features, config.num_heads, config.bias)
        self.config = config
        self.weight.requires_grad_(config.trainable_weight)
        if self.bias is not None:
            self.bias.requires_grad_(config.trainable_bias)


@dataclasses.dataclass
class mLSTMCellConfig:
    """Fields and defaults of `xlstm` 2.0.6. `context_length` limits nothing."""

    context_length: int = -1
    embedding_dim: int = -1
    num_heads: int = -1


class mLSTMCell(matrix_block.mLSTMCell):
    """`xlstm.blocks.mlstm.cell.mLSTMCell`: q, k, v (B, S, D) -> h (B, S, D)."""

    config_class = mLSTMCellConfig

    def __init__(self, config: mLSTMCellConfig):
        super().__init__(config.embedding_dim, config.num_heads)
        self.config = config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        return super().forward(q, k, v)[0]

    def step(  # type: ignore[override]
        self, q: Tensor, k: Tensor, v: Tensor, mlstm_state: Sequence[Tensor] | None = None, **_: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One token, (B, 1, D), and the official state: h (B, 1, D) and the new state."""
        h, last = super().step(q.squeeze(1), k.squeeze(1), v.squeeze(1), mlstm_state)
        return h.unsqueeze(1), last


class sLSTMCell(scalar_block.sLSTMCell):
    """`xlstm.blocks.slstm.cell.sLSTMCell` and both of its variants: gates (B, S, 4 D) -> h in `output_shape`, state (4, B, D)."""

    config_class = scalar_block.sLSTMCellConfig

    def __init__(self, config: scalar_block.sLSTMCellConfig, skip_backend_init: bool = False):
        super().__init__(config)

    def forward(  # type: ignore[override]
        self, input: Tensor, state: Tensor | None = None, lengths: Any = None
    ) -> tuple[Tensor, Tensor]:
        NH, DH = self.config.num_heads, self.config.head_dim
        x = input.view(*input.shape[:2], 4, NH, DH)
        h, last = super().forward(x.transpose(0, 1) if self.config.input_shape == "SBGNH" else x, state)
        return self._in_output_shape(h), last

    def step(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """One token as a sequence of one step."""
        return self(input, state)

    def _in_output_shape(self, h: Tensor) -> Tensor:
        axes = self.config.output_shape
        h = (
            h.permute(["BSN".index(axis) for axis in axes.replace("H", "") if axis in "BSN"] + [3])
            if "N" in axes
            else h.flatten(2)
        )
        return h.transpose(0, 1) if axes == "SBH" else h


def sLSTMCellFuncGenerator(training: bool, config: Any) -> StatesOfEveryStep:
    """The function that an official "cuda" cell calls, without a compiler."""
    return StatesOfEveryStep(config)


class RMSNorm(large.RMSNorm):
    """`xlstm.xlstm_large.components.RMSNorm`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        use_weight: bool = True,
        use_bias: bool = False,
        force_float32_reductions: bool = True,
    ):
        super().__init__(num_features, _norm_options(eps, use_weight, use_bias, force_float32_reductions))


class LargeMultiHeadLayerNorm(large.MultiHeadLayerNorm):
    """`xlstm.xlstm_large.components.MultiHeadLayerNorm`: (B, S, NH, DH) -> (B, S, NH*DH)."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        eps: float = 1e-6,
        use_weight: bool = True,
        use_bias: bool = False,
        force_float32_reductions: bool = True,
    ):
        super().__init__(num_heads * head_dim, _norm_options(eps, use_weight, use_bias, force_float32_reductions))


class mLSTMBlock(large.LargeBlock):
    """`xlstm.xlstm_large.model.mLSTMBlock`; config is any object with the fields of xLSTMLargeConfig, such as transformers'."""

    def __init__(self, config: Any):
        names = [field.name for field in dataclasses.fields(models.xLSTMLargeConfig)]
        fields = {name: getattr(config, name) for name in names if hasattr(config, name)}
        super().__init__(models.xLSTMLargeConfig(**fields))
        self.config = config

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Sequence[Tensor] | None = None, **_: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return super().forward(x, state)


def soft_cap(values: Tensor, cap_value: float | None) -> Tensor:
    """cap_value * tanh(values / cap_value); None caps nothing."""
    return large.soft_cap(values, cap_value)


mLSTMLayerStateType = tuple[Tensor, Tensor, Tensor]
mLSTMStateType = dict[int, mLSTMLayerStateType]

#: Annotations of the official configs. Kernels by name do not bind us: any name will do.
KERNEL_TYPES = dict.fromkeys(("ChunkwiseKernelType", "SequenceKernelType", "StepKernelType"), str) | {
    "BackendModeType": Literal["train", "train_with_padding", "inference"],
    "DtypeType": Literal["float32", "bfloat16", "float16"],
    "WeightModeType": Literal["single", "fused"],
}


def round_up_to_next_multiple_of(x: float, multiple_of: int) -> int:
    """The least multiple of an integer that is not below x (for an x with a fraction, as the official package rounds it)."""
    return int((x + multiple_of - 1) // multiple_of * multiple_of)


def bias_linspace_init_(param: Tensor, start: float = 3.4, end: float = 6.0) -> Tensor:
    """Evenly spaced values, in place."""
    with torch.no_grad():
        return param.copy_(init.linspace_bias(len(param), start, end, param))


def parallel_stabilized_simple(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    igate_preact: Tensor,
    fgate_preact: Tensor,
    lower_triangular_matrix: Tensor | None = None,
    stabilize_rowwise: bool = True,
    eps: float = 1e-6,
    **_: Any,
) -> Tensor:
    """`xlstm.blocks.mlstm.backends`: (B, NH, S, DH), gates (B, NH, S, 1) -> (B, NH, S, DH); causal whatever the matrix."""
    q, k, v, i, f = (x.transpose(1, 2) for x in (queries, keys, values, igate_preact, fgate_preact))
    h = functional.mlstm(q, k, v, i.squeeze(-1), f.squeeze(-1), eps=eps)
    assert isinstance(h, Tensor)
    return h.transpose(1, 2)


def _only(**options: tuple[object, object]) -> None:
    """ValueError for an option that is not implemented."""
    for name, (value, only) in options.items():
        if value != only:
            raise ValueError(f"{name}: got {value!r}, expected {only!r}, the only value that is implemented")


def _norm_options(eps: float, use_weight: bool, use_bias: bool, force_float32_reductions: bool) -> Any:
    """Options of the official norms of xlstm_large, for ours."""
    _only(use_weight=(use_weight, True))
    return SimpleNamespace(norm_eps=eps, use_bias=use_bias, norm_reduction_force_float32=force_float32_reductions)


def _public() -> dict[str, dict[str, Any]]:
    """The names of every official submodule."""
    feed = {"FeedForwardConfig": blocks.FeedForwardConfig, "GatedFeedForward": blocks.GatedFeedForward}
    matrix_layer = {"mLSTMLayer": blocks.mLSTMLayer, "mLSTMLayerConfig": blocks.mLSTMLayerConfig}
    matrix = {"mLSTMBlock": blocks.mLSTMBlock, "mLSTMBlockConfig": blocks.mLSTMBlockConfig}
    scalar_layer = {"sLSTMLayer": blocks.sLSTMLayer, "sLSTMLayerConfig": blocks.sLSTMLayerConfig}
    scalar = {"sLSTMBlock": blocks.sLSTMBlock, "sLSTMBlockConfig": blocks.sLSTMBlockConfig}
    stack = {"xLSTMBlockStack": blocks.xLSTMBlockStack, "xLSTMBlockStackConfig": blocks.xLSTMBlockStackConfig}
    language = {"xLSTMLMModel": models.xLSTMLMModel, "xLSTMLMModelConfig": models.xLSTMLMModelConfig}
    scalar_cell: dict[str, Any] = dict.fromkeys(("sLSTMCell", "sLSTMCell_cuda", "sLSTMCell_vanilla"), sLSTMCell)
    scalar_cell |= {"sLSTMCellConfig": scalar_block.sLSTMCellConfig, "sLSTMCellFuncGenerator": sLSTMCellFuncGenerator}
    matrix_cell = {"mLSTMCell": mLSTMCell, "mLSTMCellConfig": mLSTMCellConfig}
    large_model = {"xLSTMLarge": models.xLSTMLarge, "xLSTMLargeConfig": models.xLSTMLargeConfig}
    large_parts = {"RMSNorm": RMSNorm, "MultiHeadLayerNorm": LargeMultiHeadLayerNorm, "soft_cap": soft_cap}
    types = {"mLSTMLayerStateType": mLSTMLayerStateType, "mLSTMStateType": mLSTMStateType} | KERNEL_TYPES
    rounding = {"round_up_to_next_multiple_of": round_up_to_next_multiple_of}
    linear = {"LinearHeadwiseExpand": LinearHeadwiseExpand, "LinearHeadwiseExpandConfig": LinearHeadwiseExpandConfig}
    initial = {"bias_linspace_init_": bias_linspace_init_, "small_init_init_": init.small_init_, "wang_init_": init.wang_init_}
    return {
        "xlstm": {"__version__": VERSION} | feed | matrix | matrix_layer | scalar | scalar_layer | stack | language,
        "xlstm.blocks": {},
        "xlstm.blocks.mlstm": {},
        "xlstm.blocks.mlstm.backends": {"parallel_stabilized_simple": parallel_stabilized_simple},
        "xlstm.blocks.mlstm.block": matrix | matrix_layer,
        "xlstm.blocks.mlstm.cell": matrix_cell,
        "xlstm.blocks.mlstm.layer": matrix_layer | matrix_cell,
        "xlstm.blocks.slstm": {},
        "xlstm.blocks.slstm.block": scalar | scalar_layer | feed,
        "xlstm.blocks.slstm.cell": scalar_cell,
        "xlstm.blocks.slstm.layer": scalar_layer | scalar_cell,
        "xlstm.blocks.xlstm_block": {},
        "xlstm.components": {},
        "xlstm.components.conv": {},
        "xlstm.components.feedforward": feed,
        "xlstm.components.init": initial,
        "xlstm.components.linear_headwise": linear,
        "xlstm.components.ln": {"LayerNorm": LayerNorm, "MultiHeadLayerNorm": MultiHeadLayerNorm},
        "xlstm.components.util": {},
        "xlstm.utils": {"UpProjConfigMixin": feedforward.UpProjConfigMixin},
        "xlstm.xlstm_block_stack": stack | matrix | scalar,
        "xlstm.xlstm_large": large_model,
        "xlstm.xlstm_large.components": large_parts,
        "xlstm.xlstm_large.from_pretrained": {},
        "xlstm.xlstm_large.generate": {},
        "xlstm.xlstm_large.model": large_model | large_parts | types | rounding | {"mLSTMBlock": mLSTMBlock},
        "xlstm.xlstm_large.utils": rounding,
        "xlstm.xlstm_lm_model": language | stack,
    }


#: Official public names without a counterpart, and what serves instead.
MISSING = {
    "CausalConv1d": "xlstm_cuda.blocks.conv.CausalConv1d takes (features, kernel_size)",
    "CausalConv1dConfig": "xlstm_cuda.blocks.conv.CausalConv1d takes (features, kernel_size)",
    "FeedForward": "xlstm_cuda.models.large.LargeFeedForward takes an xLSTMLargeConfig",
    "LayerNorm": "torch.nn.LayerNorm",
    "MultiHeadRMSNorm": "RMSNorm of every head",
    "NormLayer": "RMSNorm or MultiHeadLayerNorm",
    "chunkwise_simple": "xlstm_cuda.functional.mlstm",
    "conditional_decorator": "an if",
    "conv1d_step": "xlstm_cuda.blocks.conv.CausalConv1d.step",
    "convert_single_weights_to_fused_weights": "load_state_dict, which takes the weights of either mode",
    "recurrent_step_stabilized_simple": "xlstm_cuda.functional.mlstm_step",
    "create_feedforward": "GatedFeedForward(config)",
    "get_act_fn": "torch.nn.functional",
    "ParameterProxy": "the parameters have one layout here, that of the vanilla cell",
    "sLSTMCellBase": "sLSTMCell",
    "sLSTMCellCUDA": "nothing is compiled at run time here",
    "slstm_pointwise_function_registry": "xlstm_cuda.functional.slstm",
    "mLSTMLayer": "xlstm_cuda.models.large.LargeMLSTMLayer takes an xLSTMLargeConfig",
    "mLSTMLayerConfig": "xLSTMLargeConfig",
    "load_from_pretrained": "xlstm_cuda.checkpoints.load",
    "round_to_multiple": "round_up_to_next_multiple_of of xlstm.xlstm_large.utils",
    "xLSTMBlock": "mLSTMBlock or sLSTMBlock",
    "xLSTMLargeBlockStack": "xlstm_cuda.models.large.LargeBackbone",
    "xLSTMBlockConfig": "mLSTMBlockConfig or sLSTMBlockConfig",
    "generate_tokens": "xLSTMLarge.generate",
    "get_sampling_fn": "xLSTMLarge.generate",
    "greedy_sampling": "torch.argmax",
    "WeightDecayOptimGroupMixin": "xLSTMLMModel.get_weight_decay_optim_groups",
}


def _modules() -> dict[str, ModuleType]:
    """A module for every official one, submodules as attributes of their parents."""
    public = _public()
    parents = {name.rpartition(".")[0] for name in public}
    modules = {name: _module(name, entries, name in parents) for name, entries in public.items()}
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    return modules


def _module(name: str, entries: Mapping[str, Any], is_package: bool) -> ModuleType:
    module = ModuleType(name, "Names of the official package xlstm, served by xlstm_cuda.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=is_package)
    if is_package:
        module.__path__ = []

    def lacking(attribute: str) -> Any:
        if attribute in MISSING:
            raise ImportError(f"{name}.{attribute}: got a name that xlstm_cuda does not have; instead: {MISSING[attribute]}")
        raise AttributeError(f"module {name!r}, served by xlstm_cuda, has no attribute {attribute!r}")

    vars(module).update(entries, __getattr__=lacking)
    return module
