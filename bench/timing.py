"""Interleaved timing of several functions: A B A B, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds of ``runs`` calls."""

    median: float
    minimum: float
    maximum: float
    runs: int

    def __str__(self) -> str:
        return f"{self.median:9.2f} ms  (min {self.minimum:.2f}, max {self.maximum:.2f}, {self.runs} runs)"


def interleaved(functions: dict[str, Callable[[], object]], runs: int = 7) -> dict[str, Timing]:
    """Calls every function once to warm it up, then ``runs`` rounds of all of them."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: Timing(statistics.median(t), min(t), max(t), runs) for name, t in times.items()}


def table(timings: dict[str, Timing], ours: str) -> str:
    """One line a function, with its time over ours."""
    width = max(map(len, timings))
    base = timings[ours].median
    return "\n".join(f"{name:{width}}  {t}  {t.median / base:6.2f}x" for name, t in timings.items())
