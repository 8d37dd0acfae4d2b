"""The CPU's mLSTM kernels alone: `python -m bench kernels` calls them as `mlstm()` does, without PyTorch around them.

Prints milliseconds and the share of the FMA peak with one thread, and how many times as fast two are. The peak is that of
multiply-adds that never leave the registers (fma_peak.cpp, which needs a C++ compiler). All times are the lowest of their rounds,
as the peak's is: a neighbour on the machine takes the memory from the kernels, but not from the peak.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xlstm_cuda.native import cpu_isa
from xlstm_cuda.ops import mlstm_cpu

from .checkout import commit
from .environment import environment
from .suites.mlstm import CPU_SHAPES, ours
from .timing import interleaved, keep_freed_memory, wall_clock

FILE = "kernels.json"
SHAPES = (*CPU_SHAPES, (1, 256, 4, 64), (1, 512, 4, 64), (1, 512, 4, 128), (1, 8192, 4, 64))  #: B, S, NH, D
LANES = {"avx512": 16, "avx2": 8, "baseline": 4}  #: of float32
PASSES = "forward", "backward"
THREADS = 1, 2


def multiply_adds(S: int, D: int) -> dict[str, int]:
    """Products that a head needs over S steps: pairs of steps in the same chunk, once, and its state, which the first chunk does
    not read and nobody reads after the last, and which forward keeps for backward. The chunk is as long as makes them fewest.
    """

    def counted(L: int) -> dict[str, int]:
        whole, rest = divmod(S, L)
        after_first, before_last = S - (L if whole else rest), S - (rest or L)
        pairs = (whole * L * (L + 1) + rest * (rest + 1)) // 2
        return {
            "forward": 2 * D * pairs + D * (D + 1) * (after_first + before_last),
            "backward": 5 * D * pairs + D * (D + 1) * (2 * after_first + 2 * before_last),
        }

    return min((counted(L) for L in (32, 64, 128, 256)), key=lambda one: sum(one.values()))


@functools.cache
def peak() -> float:
    """Multiply-adds a second on one core, with the vectors that the kernels use."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/fma_peak.so"
        source, lanes = str(Path(__file__).with_name("fma_peak.cpp")), LANES[cpu_isa()]
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-O3", "-march=native", f"-DLANES={lanes}", "-shared", "-fPIC", source, "-o", library]
        subprocess.run(command, check=True)
        loop = ctypes.CDLL(library).multiply_adds
    loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_float
    rounds = 500_000
    times = [wall_clock(lambda: loop(rounds), 1) for _ in range(20)]
    return 12 * lanes * rounds / (1e-3 * min(times))


@contextmanager
def recorded() -> Iterator[dict[str, Callable[..., None]]]:
    """The native calls that are made inside, by pass. As long as their tensors live, each can be called again."""
    calls: dict[str, Callable[..., None]] = {}
    tables = dict(zip(PASSES, (mlstm_cpu._FORWARD, mlstm_cpu._BACKWARD)))
    native = {name: table[torch.float32] for name, table in tables.items()}

    def recording(name: str) -> Callable[..., None]:
        def call(**operands: Any) -> None:
            calls[name] = functools.partial(native[name], **operands)
            native[name](**operands)

        return call

    try:
        for name, table in tables.items():
            table[torch.float32] = recording(name)
        yield calls
    finally:
        for name, table in tables.items():
            table[torch.float32] = native[name]


def measured(shape: tuple[int, int, int, int], seconds: float) -> dict[str, Any]:
    """Milliseconds of each pass and of both with each number of threads; how many times as fast both are with the second."""
    B, S, NH, D = shape
    prepared = ours("cpu")(dict(B=B, S=S, NH=NH, DHQK=D, DHHV=D), torch.device("cpu"), torch.float32)
    with recorded() as calls:
        h = prepared.forward()
        dh = torch.randn_like(h)
        gradients = torch.autograd.grad(h, list(prepared.leaves.values()), dh, retain_graph=True)
    timed = {f"{name}, {n}": functools.partial(calls[name], threads=n) for name in PASSES for n in THREADS}
    timed |= {f"both, {n}": functools.partial(run_all, [timed[f"{name}, {n}"] for name in PASSES]) for n in THREADS}
    times = interleaved(timed, seconds=seconds, most=25)
    del h, dh, gradients  # not before: the native calls know only their addresses
    return {
        "shape": dict(B=B, S=S, NH=NH, D=D),
        "ms": {name: {str(n): times[f"{name}, {n}"].minimum for n in THREADS} for name in (*PASSES, "both")},
        "multiply-adds": {name: B * NH * count for name, count in multiply_adds(S, D).items()},
        "second thread": times["both, 1"].minimum / times["both, 2"].minimum,
    }


def run_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def main(out: Path, quick: bool) -> None:
    """Prints the figures and keeps them in ``out``."""
    torch.set_num_threads(max(THREADS))
    keep_freed_memory()
    found: dict[str, Any] = {
        "commit": commit(), "waiting": environment()["waiting"], "isa": cpu_isa(), "peak": peak(), "kernels": [],
    }  # fmt: skip
    for shape in SHAPES[:2] if quick else SHAPES:
        found["kernels"].append(measured(shape, 0.5 if quick else 4.0))
    print("\n".join(lines(found)))
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(found, indent=1) + "\n")


def lines(found: dict[str, Any]) -> list[str]:
    """A table in Markdown, and what its shares are of."""
    columns = ["float32, one thread"]
    for name in (*PASSES, "both"):
        columns += [f"{name}, ms", "of the peak"]
    table = [f"| {' | '.join([*columns, 'two threads'])} |", f"|---|{'--:|' * len(columns)}"]
    for one in found["kernels"]:
        counts, cells = one["multiply-adds"], []
        for name in (*PASSES, "both"):
            ms = one["ms"][name]["1"]
            count = counts[name] if name in counts else sum(counts.values())
            cells += [f"{ms:.3f}", f"{1e3 * count / ms / found['peak']:.0%}"]
        shape = " ".join(f"{axis}{size}" for axis, size in one["shape"].items())
        table.append(f"| {shape} | {' | '.join(cells)} | {one['second thread']:.2f}x |")
    waiting = found["waiting"] or "as OpenMP does by itself"
    peak = f"The peak of a core is {2e-9 * found['peak']:.1f} GFLOP/s ({found['isa']}). Threads wait: {waiting}."
    return [*table, "", peak]
