"""Where the time of the default model goes on a CPU, training and decoding: matmuls, recurrences, rest.

`python -m bench profile` prints shares of PyTorch's profiler. It sees our native calls under labels: a recurrence over a sequence
with everything inside it, the passes around it in an mLSTM layer, and a block's whole decoding step. A matmul is one outside.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from xlstm_cuda.cli.device import Device
from xlstm_cuda.cli.settings import VOCAB_SIZE, Settings
from xlstm_cuda.cli.text import Corpus
from xlstm_cuda.cli.training import Training
from xlstm_cuda.ops import block_step_cpu, mlstm_cpu, mlstm_layer_cpu, slstm_cpu

from .checkout import commit
from .suites.decode import default_model, tokens

MATMULS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
FILE = "profile.json"
RECURRENCE, PASSES, STEP = "recurrence", "passes around the recurrence", "native step of a block"
#: What the profiler sees under a label: a module's function.
LABELS = (
    (mlstm_cpu, "forward", RECURRENCE), (mlstm_cpu, "backward", RECURRENCE),
    (slstm_cpu, "forward", RECURRENCE), (slstm_cpu, "backward", RECURRENCE),
    (mlstm_layer_cpu, "run_pass", PASSES),
    (block_step_cpu, "mlstm", STEP), (block_step_cpu, "slstm", STEP),
)  # fmt: skip


@dataclass(frozen=True)
class Shares:
    """Milliseconds a call without the profiler, and where it goes: ``rest`` by operator, the largest first."""

    ms: float
    matmuls: float
    recurrences: float
    rest: dict[str, float]

    @property
    def outside(self) -> float:
        return 1 - self.matmuls - self.recurrences

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {share:.1%}" for name, share in list(self.rest.items())[:10])
        return (
            f"{self.ms:.2f} ms: recurrences {self.recurrences:.1%}, matmuls outside them {self.matmuls:.1%},"
            f" rest {self.outside:.1%} ({largest})"
        )


def shares(call: Callable[[], object], calls: int) -> Shares:
    """Profiles ``calls`` calls, after as many without the profiler."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    with labelled(), profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("all"):
        for _ in range(calls):
            call()
    spent: Counter[str] = Counter()
    for event in profiler.events() or ():
        if event.name == "all":
            total = event.cpu_time_total
        spent[bucket(event)] += event.self_cpu_time_total
    rest = {name: spent[name] / total for name, _ in spent.most_common() if name not in ("matmul", "recurrence")}
    return Shares(statistics.median(times), spent["matmul"] / total, spent["recurrence"] / total, rest)


def bucket(event: Any) -> str:
    """The innermost label around an event, "matmul" for a matmul outside them, otherwise the operator's name."""
    above = event
    while above is not None:
        if above.name in (RECURRENCE, PASSES, STEP):
            return above.name
        above = above.cpu_parent
    if event.name in MATMULS:
        return "matmul"
    ours = event.name.startswith(("_MLSTM", "_SLSTM"))
    return "Python and autograd" if event.name == "all" or ours or "autograd::" in event.name else event.name


def training() -> Shares:
    """A step of `python -m xlstm_cuda train` with its defaults, optimizer included, on random bytes."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(VOCAB_SIZE, (1 << 17,), generator=generator, dtype=torch.uint8)
    run = Training(Settings(), Corpus.of_bytes(text, text), Device(torch.device("cpu")))
    for _ in range(3):
        run.train_step()
    return shares(run.train_step, 10)


@torch.inference_mode()
def decoding() -> Shares:
    """A token of the same model at batch 1."""
    cpu = torch.device("cpu")
    model, token = default_model(cpu, torch.float32), tokens(1, 1, cpu)
    state = None
    for _ in range(20):
        _, state = model.step(token, state)
    return shares(lambda: model.step(token, state), 200)


@contextmanager
def labelled() -> Iterator[None]:
    """The profiler sees the functions of `LABELS` under their labels."""

    def under(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with record_function(label):
                return function(*arguments, **options)

        return run

    before = [getattr(module, name) for module, name, _ in LABELS]
    try:
        for (module, name, label), function in zip(LABELS, before):
            setattr(module, name, under(label, function))
        yield
    finally:
        for (module, name, _), function in zip(LABELS, before):
            setattr(module, name, function)


def main(out: Path) -> None:
    """Prints the shares and keeps them in ``out``."""
    print(f"default model of `python -m xlstm_cuda train`, CPU, {torch.get_num_threads()} threads, float32")
    found = {}
    for name, measured in (("training step", training), ("decode step", decoding)):
        found[name] = measured()
        print(f"{name:14} {found[name]}", flush=True)
    rest = {name: {**asdict(one), "rest": dict(list(one.rest.items())[:12])} for name, one in found.items()}
    content = {"commit": commit(), "threads": torch.get_num_threads(), "shares": rest}
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(content, indent=1) + "\n")
