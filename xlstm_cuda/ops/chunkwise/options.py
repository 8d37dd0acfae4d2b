"""Options of the mLSTM that change its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """The options of `functional.mlstm` that change the numbers."""

    scale: float
    igate: str
    normalize: bool
    eps: float
    chunk_size: int | None
