"""A stack of residual blocks with a norm at its end."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from .mlstm import mLSTMBlock, mLSTMBlockConfig
from .norms import LayerNorm
from .residual import LayerState, check_input
from .slstm import sLSTMBlock, sLSTMBlockConfig

#: Official form: {"block_0": {...}, "block_1": {...}, ...}; None or a missing block is fresh.
StackState = Mapping[str, LayerState]


@dataclass
class xLSTMBlockStackConfig:
    """Fields and defaults of `xlstm` 2.0.6.

    `slstm_at` lists the positions of sLSTM blocks, or is "all"; without an mlstm_block every block is an sLSTM. `embedding_dim`
    and `dropout` (for mLSTM blocks also `bias`, `context_length`) are written into the block configs; as in the official package
    `bias` and `dropout` do not reach the feed-forward networks, which have their own. `context_length` limits nothing.
    """

    mlstm_block: mLSTMBlockConfig | None = None
    slstm_block: sLSTMBlockConfig | None = None

    context_length: int = -1
    num_blocks: int = 1
    embedding_dim: int = 128
    add_post_blocks_norm: bool = True
    bias: bool = False
    dropout: float = 0.0

    slstm_at: list[int] | Literal["all"] = field(default_factory=list)

    _block_map: str | None = None  # computed: comma-separated, 0 for an mLSTM block, 1 for an sLSTM block

    @property
    def block_map(self) -> list[int]:
        return [int(kind) for kind in (self._block_map or "").split(",") if kind]

    def __post_init__(self) -> None:
        if self.mlstm_block is None:
            self.slstm_at = "all"
        if self.slstm_at == "all":
            self.slstm_at = list(range(self.num_blocks))
        if isinstance(self.slstm_at, str):
            raise ValueError(f"slstm_at: got {self.slstm_at!r}, expected a list of positions or 'all'")
        if self.mlstm_block is not None:
            layer = self.mlstm_block.mlstm
            layer.embedding_dim, layer.bias, layer.dropout = self.embedding_dim, self.bias, self.dropout
            layer.context_length = self.context_length
            self.mlstm_block._num_blocks = self.num_blocks
            self.mlstm_block.__post_init__()
        if self.slstm_block is not None:
            self.slstm_block.slstm.embedding_dim, self.slstm_block.slstm.dropout = self.embedding_dim, self.dropout
            self.slstm_block._num_blocks = self.num_blocks
            self.slstm_block.__post_init__()
        kinds = [0] * self.num_blocks
        for position in self.slstm_at:
            if not -self.num_blocks <= position < self.num_blocks:
                raise ValueError(f"slstm_at: got {position}, expected a position among {self.num_blocks} blocks")
            kinds[position] = 1
        self._block_map = ",".join(map(str, kinds))


class xLSTMBlockStack(nn.Module):
    """mLSTM and sLSTM blocks one after the other, and a norm. Input and output (B, S, D), any S.

    Examples:
        >>> from xlstm_cuda import mLSTMBlockConfig, sLSTMBlockConfig
        >>> config = xLSTMBlockStackConfig(mLSTMBlockConfig(), sLSTMBlockConfig(), num_blocks=3, embedding_dim=64, slstm_at=[1])
        >>> stack = xLSTMBlockStack(config)
        >>> x = torch.randn(2, 100, 64)
        >>> y, state = stack(x[:, :60], return_last_state=True)
        >>> more = stack(x[:, 60:], state)  # the rest of the sequence
        >>> more.shape
        torch.Size([2, 40, 64])
    """

    config_class = xLSTMBlockStackConfig

    def __init__(self, config: xLSTMBlockStackConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(self._block(index, kind) for index, kind in enumerate(config.block_map))
        self.post_blocks_norm = LayerNorm(config.embedding_dim) if config.add_post_blocks_norm else nn.Identity()

    def _block(self, index: int, kind: int) -> mLSTMBlock | sLSTMBlock:
        block_config: Any = deepcopy(self.config.slstm_block if kind else self.config.mlstm_block)
        if block_config is None:
            raise ValueError(f"slstm_block: got None, expected an sLSTMBlockConfig, because block {index} is an sLSTM block")
        block_config._block_idx = index
        block_config.__post_init__()
        return sLSTMBlock(block_config) if kind else mLSTMBlock(block_config)

    def reset_parameters(self) -> None:
        for block in self.blocks:
            block.reset_parameters()  # type: ignore[operator]
        if isinstance(self.post_blocks_norm, LayerNorm):
            self.post_blocks_norm.reset_parameters()

    def forward(
        self,
        x: Tensor,
        state: StackState | None = None,
        return_last_state: bool = False,
        *,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        cp_group: Any = None,
        backend: str | None = None,
    ) -> Any:
        """A sequence or a piece of one.

        Args:
            x: (B, S, D).
            state: {"block_0": state of the block's layer, ...}, the official form; None or a missing block is fresh.
            return_last_state: also return the state after the last step, in the same form.
            cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, states have N rows.
            reset: bool (B, S); True starts that sample afresh before that step, the convolutions too.
            cp_group: a process group whose ranks hold contiguous pieces of S, as in functional.mlstm; mLSTM blocks alone.
            backend: as in `xlstm_cuda.functional`; None goes by the device of the tensors.

        Returns:
            y (B, S, D), or (y, state). Feeding a sequence in pieces with the returned state equals feeding it whole, gradients
            included.
        """
        piece, cu_seqlens = check_input(x, self.config.embedding_dim, False, cu_seqlens, reset, cp_group, state)
        before = self._check_state(state)
        last = {}
        options: dict[str, Any] = dict(cu_seqlens=cu_seqlens, reset=reset, backend=backend)
        if piece is not None:
            options["cp_group"] = piece
        for name, block in zip(self._names(), self.blocks):
            if return_last_state:
                x, last[name] = block(x, before.get(name), True, **options)
            else:
                x = block(x, before.get(name), **options)
        x = self.post_blocks_norm(x)
        return (x, last) if return_last_state else x

    def step(
        self, x: Tensor, state: StackState | None = None, *, in_place: bool = False, backend: str | None = None
    ) -> tuple[Tensor, dict[str, dict[str, Any]]]:
        """One token, x (B, 1, D): y (B, 1, D) and the new state.

        The given state is left as it is; ``in_place`` gives it away: its memory may hold the new one, where that is faster.
        """
        check_input(x, self.config.embedding_dim, single_step=True)
        before = self._check_state(state)
        last = {}
        for name, block in zip(self._names(), self.blocks):
            x, last[name] = block.step(x, before.get(name), in_place=in_place, backend=backend)  # type: ignore[operator]
        return self.post_blocks_norm(x), last

    def _names(self) -> list[str]:
        return [f"block_{index}" for index in range(len(self.blocks))]

    def _check_state(self, state: StackState | None) -> StackState:
        if state is None:
            return {}
        if not isinstance(state, Mapping):
            raise TypeError(f"state: got {type(state).__name__}, expected a dictionary of block states")
        if unknown := set(state) - set(self._names()):
            names = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"state: got keys {names}, expected block_0 to block_{len(self.blocks) - 1}")
        return state
