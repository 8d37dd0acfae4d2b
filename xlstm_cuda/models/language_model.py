"""The language model of the xLSTM paper: embedding, xLSTMBlockStack, head (arXiv 2405.04517)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..blocks.init import small_init_
from ..blocks.stack import StackState, xLSTMBlockStack, xLSTMBlockStackConfig


def at_steps(x: Tensor, steps: Tensor | None) -> Tensor:
    """x (B, S, D) -> (B, K, D) at the steps (K,) that logits_to_keep names; None is all of them."""
    if steps is None:
        return x
    checks.dtype("logits_to_keep", checks.tensor("logits_to_keep", steps), (torch.int64, torch.int32))
    checks.rank("logits_to_keep", steps, "(K)")
    checks.device("logits_to_keep", steps, x.device)
    return x.index_select(1, steps)


@dataclass
class xLSTMLMModelConfig(xLSTMBlockStackConfig):
    """Fields and defaults of `xlstm` 2.0.6."""

    vocab_size: int = -1
    tie_weights: bool = False
    weight_decay_on_embedding: bool = False
    add_embedding_dropout: bool = False


class xLSTMLMModel(nn.Module):
    """Embedding, xLSTMBlockStack, linear head. Token ids (B, S) -> logits (B, S, vocab_size).

    The constructor calls `reset_parameters`. (The official one leaves embedding and head at PyTorch's defaults until the training
    script calls it.)

    Examples:
        >>> from xlstm_cuda import mLSTMBlockConfig
        >>> config = xLSTMLMModelConfig(mLSTMBlockConfig(), num_blocks=2, embedding_dim=64, vocab_size=100)
        >>> model = xLSTMLMModel(config)
        >>> logits, state = model(torch.randint(100, (2, 30)), return_last_state=True)  # a prompt
        >>> logits, state = model.step(logits[:, -1:].argmax(-1), state)  # one token more
        >>> logits.shape
        torch.Size([2, 1, 100])
    """

    config_class = xLSTMLMModelConfig

    def __init__(self, config: xLSTMLMModelConfig):
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size: got {config.vocab_size}, expected at least 1")
        self.config = config
        self.xlstm_block_stack = xLSTMBlockStack(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.emb_dropout = nn.Dropout(config.dropout) if config.add_embedding_dropout else nn.Identity()
        self.lm_head = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.token_embedding.weight
        self._reset_embedding()

    def reset_parameters(self) -> None:
        """Small init of embedding and head; blocks as documented there."""
        self.xlstm_block_stack.reset_parameters()
        self._reset_embedding()

    def _reset_embedding(self) -> None:
        small_init_(self.token_embedding.weight, self.config.embedding_dim)
        if not self.config.tie_weights:
            small_init_(self.lm_head.weight, self.config.embedding_dim)

    def forward(
        self,
        idx: Tensor,
        state: StackState | None = None,
        return_last_state: bool = False,
        *,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        cp_group: Any = None,
        backend: str | None = None,
    ) -> Any:
        """Logits (B, S, vocab_size) of token ids (B, S), or (logits, state); arguments as in `xLSTMBlockStack.forward`.

        logits_to_keep: int64 (K,), the steps whose logits are wanted, (B, K, vocab_size); None is every step.
        """
        x = self._embed(idx)
        options: dict[str, Any] = dict(cu_seqlens=cu_seqlens, reset=reset, cp_group=cp_group, backend=backend)
        y = self.xlstm_block_stack(x, state, return_last_state, **options)
        x, last = y if return_last_state else (y, None)
        logits = self.lm_head(at_steps(x, logits_to_keep))
        return (logits, last) if return_last_state else logits

    def step(
        self, idx: Tensor, state: StackState | None = None, *, in_place: bool = False, backend: str | None = None
    ) -> tuple[Tensor, dict[str, dict[str, Any]]]:
        """One token: ids (B, 1) -> logits (B, 1, vocab_size) and the new state; ``in_place`` as of `xLSTMBlockStack.step`."""
        x = self._embed(idx, single_step=True)
        x, last = self.xlstm_block_stack.step(x, state, in_place=in_place, backend=backend)
        return self.lm_head(x), last

    def _embed(self, idx: Tensor, single_step: bool = False) -> Tensor:
        """Embeddings (B, S, D) of token ids (B, S). Ids outside the vocabulary raise PyTorch's own IndexError."""
        checks.dtype("idx", checks.tensor("idx", idx), (torch.int64, torch.int32))
        if idx.dim() != 2 or (single_step and idx.shape[1] != 1):
            raise ValueError(f"idx: got shape {tuple(idx.shape)}, expected (B, {'1' if single_step else 'S'})")
        return self.emb_dropout(self.token_embedding(idx))

    def get_weight_decay_optim_groups(self) -> tuple[tuple[nn.Parameter, ...], tuple[nn.Parameter, ...]]:
        """Parameters with weight decay, and without, each in the order of named_parameters().

        Weight matrices decay; biases, norm weights, the skip and the recurrent kernel do not; the embedding does if
        `weight_decay_on_embedding` says so.
        """
        parameters = dict(self.named_parameters())
        decay, no_decay = self.get_weight_decay_optim_group_param_names()
        return tuple(parameters[name] for name in decay), tuple(parameters[name] for name in no_decay)

    #: The name that the official experiments call.
    _create_weight_decay_optim_groups = get_weight_decay_optim_groups

    def get_weight_decay_optim_group_param_names(self) -> tuple[list[str], list[str]]:
        """The names of `get_weight_decay_optim_groups`."""
        decay: list[str] = []
        no_decay: list[str] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter is self.token_embedding.weight:
                decays = self.config.weight_decay_on_embedding
            else:
                decays = "weight" in name and "norm" not in name
            (decay if decays else no_decay).append(name)
        return decay, no_decay
