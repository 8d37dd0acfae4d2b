"""Timing on a GPU: device events around the call, the L2 cache flushed before it; and the same call as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

FLUSH_BYTES = 256 << 20  #: more than any L2 cache


class EventClock:
    """A `Clock`: milliseconds between two events on the current stream, the L2 cache cold at the start of every call."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        total = 0.0
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            total += start.elapsed_time(end)
        return total / repeats


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph: no Python, no launch and no allocation inside the timed region.

    RuntimeError where the call cannot be captured (it synchronises, or copies to the host).
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay
