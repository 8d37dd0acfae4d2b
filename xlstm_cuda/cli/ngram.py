"""How well byte n-grams predict the held-out text: the yardstick printed beside the model's figure.

Interpolated Witten-Bell smoothing. With N(h) the number of times the context h was seen, T(h) the number of different bytes that
followed it, and h' the context without its first byte,

    p(b | h) = (count(h b) + T(h) p(b | h')) / (N(h) + T(h)),     p(b | h) = p(b | h') where h was never seen,

down to the uniform 1/256. An order-n model sees n - 1 bytes of context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 7  # an n-gram is one int64
FITTED_BYTES = 1 << 24  # of a longer text the last 16 MiB are counted, which keeps this a matter of seconds


def bits_per_byte(training: bytes, held_out: bytes, max_order: int) -> list[float]:
    """Mean -log2 p of the held-out bytes, for the orders 1..max_order. The held-out text continues the training text."""
    if not 1 <= max_order <= MAX_ORDER:
        raise ValueError(f"max_order: got {max_order}, expected 1 to {MAX_ORDER}")
    seen = np.frombuffer(training, np.uint8)[-FITTED_BYTES:].astype(np.int64)
    scored = np.frombuffer(held_out, np.uint8).astype(np.int64)
    figures = []
    p = np.full(len(scored), 1 / 256)
    for order in range(1, max_order + 1):
        if len(seen) >= order:
            p = _interpolate(_ngrams(seen, order), _ngrams(np.concatenate([seen[len(seen) - order + 1 :], scored]), order), p)
        figures.append(float(-np.log2(p).mean()))
    return figures


def _ngrams(content: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Every n-gram of the text, its bytes packed into one integer; the last byte is the lowest."""
    count = len(content) - order + 1
    packed = np.zeros(count, np.int64)
    for place in range(order):
        packed = (packed << 8) | content[place : place + count]
    return packed


def _interpolate(seen: NDArray[np.int64], scored: NDArray[np.int64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(b | h) of every scored n-gram from p(b | h') of the order below."""
    ngrams, counts = np.unique(seen, return_counts=True)
    contexts, first, followers = np.unique(ngrams >> 8, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first)
    count = _look_up(ngrams, counts, scored)
    total = _look_up(contexts, totals, scored >> 8)
    types = _look_up(contexts, followers, scored >> 8)
    return np.where(total > 0, (count + types * lower) / np.maximum(total + types, 1), lower)


def _look_up(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
