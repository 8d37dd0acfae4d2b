"""What the two residual blocks share: pre-norm, recurrent layer, residual; then pre-norm, feed-forward, residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .. import checks
from ..backends import resolve
from ..ops import block_step_cpu, context
from ..ops.context import Piece
from .norms import LayerNorm

#: Official nested form of a layer's state, e.g. {"mlstm_state": (C, n, m), "conv_state": (inputs,)}; None or missing is fresh.
LayerState = Mapping[str, Any]


def layer_state(state: LayerState | None, given: dict[str, Any]) -> dict[str, Any]:
    """A layer's state from the dictionary or from single keywords; ``given`` has every key that the layer knows."""
    if state is None:
        return given
    if not isinstance(state, Mapping):
        raise TypeError(f"state: got {type(state).__name__}, expected a dictionary with {', '.join(given)}")
    if unknown := set(state) - set(given):
        raise ValueError(f"state: got keys {', '.join(sorted(map(str, unknown)))}, expected {', '.join(given)}")
    return given | dict(state)


def check_input(
    x: Tensor,
    embedding_dim: int,
    single_step: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    cp_group: Any = None,
    state: object = None,
) -> tuple[Piece | None, Tensor | None]:
    """ValueError unless x is (B, S, D), with S = 1 for a single step, cu_seqlens are borders on S, and reset is (B, S).

    Returns the place of x among the pieces of cp_group, and the borders inside it; `context.enter` has the rules.
    """
    if x.dim() != 3 or x.shape[2] != embedding_dim or (single_step and x.shape[1] != 1):
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (B, {'1' if single_step else 'S'}, D) with D = {embedding_dim}"
        )
    piece, cu_seqlens = context.enter(cp_group, x, cu_seqlens, {"B": x.shape[0], "D": x.shape[2]}, state or None)
    if cu_seqlens is not None:
        checks.cu_seqlens(cu_seqlens, x.shape[0], x.shape[1], x.device)
    if reset is not None:
        checks.reset(reset, x.shape[0], x.shape[1], x.device)
    return piece, cu_seqlens


class ResidualBlock(nn.Module):
    """x + xlstm(norm(x)), then x + ffn(norm(x)) where the block has a feed-forward network. Input and output (B, S, D)."""

    xlstm_norm: LayerNorm
    xlstm: Any
    ffn_norm: LayerNorm | None
    ffn: nn.Module | None

    def reset_parameters(self) -> None:
        for part in (self.xlstm_norm, self.xlstm, self.ffn_norm, self.ffn):
            if part is not None:
                part.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        return_last_state: bool = False,
        *,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        backend: str | None = None,
        **layer_states: Any,
    ) -> Any:
        """y (B, S, D), with return_last_state also the layer's state; arguments as in the layer's forward."""
        check_input(x, self.xlstm_norm.dim)
        options = {"cu_seqlens": cu_seqlens, "reset": reset, "backend": backend}
        y = self.xlstm(self.xlstm_norm(x), state, return_last_state, **options, **layer_states)
        y, last = y if return_last_state else (y, None)
        y = self._feed_forward(x + y)
        return (y, last) if return_last_state else y

    def step(
        self, x: Tensor, state: LayerState | None = None, *, in_place: bool = False, backend: str | None = None, **parts: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """One token, x (B, 1, D): y (B, 1, D) and the new state; parts: of the state, as single keywords.

        The given state is left as it is; ``in_place`` gives it away: its memory may hold the new one, where that is faster.
        """
        check_input(x, self.xlstm_norm.dim, single_step=True)
        if not parts and block_step_cpu.usable(x) and resolve(backend, x.device) == "cpu":
            if (whole := self._step_in_one_call(x, state or {}, in_place)) is not None:
                return whole
        y, last = self.xlstm.step(self.xlstm_norm(x), state, backend=backend, **parts)
        return self._feed_forward(x + y), last

    def _step_in_one_call(self, x: Tensor, state: LayerState, in_place: bool) -> tuple[Tensor, dict[str, Any]] | None:
        """The step by one native call on a CPU, equal to that by modules; None where these must be called."""
        raise NotImplementedError

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x if self.ffn is None or self.ffn_norm is None else x + self.ffn(self.ffn_norm(x))
