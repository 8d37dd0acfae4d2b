"""Everything that decides what a training run computes. It is stored in the checkpoints, and a resumed run must agree with it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from .. import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModelConfig,
)
from .errors import CommandError, UsageError

VOCAB_SIZE = 256
DTYPES = ("float32", "bfloat16")


def _setting(default: Any, help: str, **bounds: float) -> Any:
    """A dataclass field with what the command line needs to know about it: help text and accepted range.

    bounds: minimum, maximum, above, below, those that there are, as the converters of `arguments` take them.
    """
    return field(default=default, metadata={"help": help, "bounds": bounds})


@dataclass(frozen=True)
class Settings:
    """Model, optimizer and data order of a training run. Same settings, same machine: same weights, bit for bit."""

    steps: int = _setting(800, "optimizer steps", minimum=1, maximum=10**9)
    batch_size: int = _setting(8, "sequences per step", minimum=1, maximum=2**16)
    context_length: int = _setting(128, "bytes, or tokens of a --tokenizer, per training sequence", minimum=1, maximum=2**20)
    embedding_dim: int = _setting(128, "width of the residual stream", minimum=1, maximum=2**16)
    num_blocks: int = _setting(4, "residual blocks", minimum=1, maximum=2**10)
    slstm_at: tuple[int, ...] = _setting(
        (1,), "blocks that are sLSTM, counted from 0, the others are mLSTM (e.g. 1,3; none; all)"
    )
    num_heads: int = _setting(4, "heads of every block", minimum=1, maximum=2**12)
    qkv_proj_blocksize: int = _setting(
        16, "block size of the mLSTM's block-diagonal q, k, v projections", minimum=1, maximum=2**16
    )
    dropout: float = _setting(0.0, "dropout in the residual blocks", minimum=0, below=1)
    learning_rate: float = _setting(4e-3, "peak learning rate, reached after the warm-up, then a cosine to zero", above=0)
    warmup_steps: int = _setting(40, "steps of linear warm-up", minimum=0, maximum=10**9)
    weight_decay: float = _setting(0.1, "AdamW weight decay of matrices", minimum=0)
    gradient_clip: float = _setting(1.0, "largest norm of the gradient", above=0)
    seed: int = _setting(0, "seed of weights, data order and dropout", minimum=0, maximum=2**62)
    dtype: str = _setting("float32", "arithmetic: float32, or bfloat16 (autocast; the weights stay float32)")
    eval_every: int = _setting(100, "steps between validations", minimum=1, maximum=10**9)
    eval_bytes: int = _setting(
        65536, "validate on at most this many bytes from the start of the held-out part", minimum=1, maximum=2**40
    )

    def model_config(self, vocab_size: int = VOCAB_SIZE) -> xLSTMLMModelConfig:
        """The model: xLSTM[a:b] with the paper's pre up-projection mLSTM and post up-projection sLSTM blocks.

        Raises:
            UsageError: the numbers do not go together.
        """
        if outside := [index for index in self.slstm_at if not 0 <= index < self.num_blocks]:
            raise UsageError(
                f"--slstm-at: got block {outside[0]}, expected 0 to {self.num_blocks - 1} (--num-blocks {self.num_blocks})"
            )
        if self.embedding_dim % self.num_heads:
            raise UsageError(f"--embedding-dim: got {self.embedding_dim}, expected a multiple of --num-heads {self.num_heads}")
        with option_names():
            return xLSTMLMModelConfig(
                vocab_size=vocab_size,
                context_length=self.context_length,
                num_blocks=self.num_blocks,
                embedding_dim=self.embedding_dim,
                slstm_at=list(self.slstm_at),
                dropout=self.dropout,
                mlstm_block=mLSTMBlockConfig(
                    mlstm=mLSTMLayerConfig(num_heads=self.num_heads, qkv_proj_blocksize=self.qkv_proj_blocksize)
                ),
                slstm_block=sLSTMBlockConfig(
                    slstm=sLSTMLayerConfig(num_heads=self.num_heads), feedforward=FeedForwardConfig(dropout=self.dropout)
                ),
            )

    def model_name(self) -> str:
        """The paper's notation: xLSTM[a:b] with a mLSTM and b sLSTM blocks."""
        return f"xLSTM[{self.num_blocks - len(self.slstm_at)}:{len(self.slstm_at)}]"

    @classmethod
    def from_checkpoint(cls, stored: object, where: str) -> Settings:
        """Settings as a checkpoint holds them. CommandError names one that is missing, unknown here or out of range."""
        if not isinstance(stored, Mapping):
            raise CommandError(f"{where} holds no settings")
        names = {one.name for one in fields(cls)}
        if unknown := sorted(map(str, stored.keys() - names)):
            raise CommandError(f"{where} is of another version: setting {unknown[0]!r} is unknown here")
        if missing := sorted(names - stored.keys()):
            raise CommandError(f"{where} is of another version: setting {missing[0]!r} is missing")
        for one in fields(cls):
            if not _in_range(one, stored[one.name]):
                raise CommandError(f"{where}: setting {one.name!r} is {stored[one.name]!r:.80}, which no run could have")
        return cls(**{**stored, "slstm_at": tuple(stored["slstm_at"])})


def _in_range(one: Field[Any], value: object) -> bool:
    """Whether the command line would have taken the value."""
    if one.name == "dtype":
        return value in DTYPES
    if one.name == "slstm_at":
        return isinstance(value, (list, tuple)) and all(type(index) is int and index >= 0 for index in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if isinstance(value, float) and isinstance(one.default, int):
        return False
    bounds = one.metadata["bounds"]
    within = bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
    return math.isfinite(value) and within and bounds.get("above", -math.inf) < value < bounds.get("below", math.inf)


@contextlib.contextmanager
def option_names() -> Iterator[None]:
    """A model's own error about a field, as one about the option of that name."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(": ")
        if name in {one.name for one in fields(Settings)}:
            raise UsageError(f"--{name.replace('_', '-')}: {rest}") from error
        raise UsageError(f"these options do not make a model: {error}") from error
