"""Interleaved timing of several calls: A B A B, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

KEPT = (32 << 20) - 8192  #: bytes; the largest block by whose size glibc sets its thresholds
SHORTEST_SAMPLE = 2e-2  #: seconds; quicker calls are repeated inside a sample
WARM = 1e-1  #: seconds; before a sample of quicker calls one is made that is not timed


@dataclass(frozen=True)
class Timing:
    """Milliseconds of ``runs`` samples; ``times`` in the order taken, one a round."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def minimum(self) -> float:
        return min(self.times)

    @property
    def maximum(self) -> float:
        return max(self.times)

    @property
    def runs(self) -> int:
        return len(self.times)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, up to 64 MiB, as it does in every process that has once freed a block of 32 MiB.

    A loop of calls that frees its results would otherwise return them to the system and pay for new pages in every round: 2.8 of
    14 ms for 10 MB of gradients.
    """
    torch.empty(KEPT, dtype=torch.uint8)


class Clock(Protocol):
    """Milliseconds that ``repeats`` calls take, per call."""

    def __call__(self, call: Callable[[], object], repeats: int) -> float: ...


def wall_clock(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def interleaved(
    calls: Mapping[str, Callable[[], object]], clock: Clock = wall_clock, seconds: float = 3.0, most: int = 9
) -> dict[str, Timing]:
    """Times every call in rounds, as in a loop of its own: the other contenders of a round have left their data in the caches,
    so a sample begins after one call that is not timed, unless a call takes so long that the caches do not matter.

    Each contender gets the same share of ``seconds``, so slow ones have fewer runs, at least one; all have at most ``most``.
    """
    runs, repeats, quick = {}, {}, set()
    for name, call in calls.items():
        one = 1e-3 * clock(call, 1)
        if one < SHORTEST_SAMPLE:  # that one was cold
            one = 1e-3 * clock(call, 3)
        if one < WARM:
            quick.add(name)
        repeats[name] = max(1, int(SHORTEST_SAMPLE / one))
        runs[name] = min(most, max(1, int(seconds / len(calls) / (one * repeats[name]))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(max(runs.values(), default=0)):
        for name, call in calls.items():
            if round_ < runs[name]:
                if name in quick:
                    call()
                times[name].append(clock(call, repeats[name]))
    return {name: Timing(tuple(t)) for name, t in times.items()}


def ratio(other: Timing, ours: Timing) -> float:
    """How many times as long the other takes: the median over the rounds that both took part in."""
    return statistics.median(theirs / own for theirs, own in zip(other.times, ours.times))
