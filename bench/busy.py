"""Training beside other busy processes: `python -m bench busy [--quick]`.

Runs the first steps of `python -m xlstm_cuda train` in processes of their own, by turns: alone as the command waits, alone with
OpenMP's active waiting, and beside as many spinning processes as there are processors, two at least.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import WAITING
from .checkout import ROOT, commit

FILE = "busy.json"
STEPS, ROUNDS = 40, 5
NEIGHBOURS = max(2, len(os.sched_getaffinity(0)))
ALONE, ACTIVE, BESIDE = "alone", "alone, active waiting", f"beside {NEIGHBOURS} busy processes"


def main(out: Path, quick: bool) -> None:
    """Prints the medians and keeps them in ``out``."""
    seconds: dict[str, list[float]] = {ALONE: [], ACTIVE: [], BESIDE: []}
    for _ in range(1 if quick else ROUNDS):
        seconds[ALONE].append(train())
        seconds[ACTIVE].append(train(OMP_WAIT_POLICY="ACTIVE"))
        with neighbours():
            seconds[BESIDE].append(train())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for line in lines({"seconds": medians}):
        print(line)
    found: dict[str, Any] = {"commit": commit(), "steps": STEPS, "rounds": len(seconds[ALONE]), "seconds": medians}
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(found, indent=1) + "\n")


def lines(found: dict[str, Any]) -> list[str]:
    """A sentence for each way of running."""
    alone = found["seconds"][ALONE]
    return [f"{name}: {value:.2f} s, {value / alone:.2f} of the time alone" for name, value in found["seconds"].items()]


def train(**environment: str) -> float:
    """Seconds of the command with PyTorch's start, which is the same in all of them."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "xlstm_cuda", "train", "--steps", str(STEPS), "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=inherited | environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


@contextmanager
def neighbours() -> Iterator[None]:
    """Processes that never wait."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NEIGHBOURS)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
