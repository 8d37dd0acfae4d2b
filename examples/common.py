"""What the measured examples share: training, data of installed packages, results with seeds, the table, the picture.

An example is an `Experiment`: contenders, one function that measures one contender with one seed, the claims that the results
must support, and a picture. `python -m examples.NAME` runs it; `python -m examples` runs all and writes docs/examples.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.environment import environment
from bench.progress import Progress
from bench.transformer import TransformerLM

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "runs/examples"  #: where a run by hand leaves its results
MACHINE = ("commit", "date", "processor", "isa", "cores", "threads", "load", "python", "torch")


class MissingData(ImportError):
    """A package that holds an example's data is not installed."""


# ---------------------------------------------------------------- data and training
def data_file(package: str, pip_name: str, path: str) -> Path:
    """A file inside an installed package, which is found without being imported.

    Raises:
        MissingData: the package, or the file in it, is not there; says what to install.
    """
    spec = importlib.util.find_spec(package)
    file = Path(next(iter(spec.submodule_search_locations))) / path if spec and spec.submodule_search_locations else None
    if file is None or not file.exists():
        raise MissingData(f"{package}/{path} is not installed, expected the data of {pip_name}: pip install {pip_name}")
    return file


def train(model: nn.Module, loss: Callable[[int], Tensor], steps: int, lr: float, report: Callable[[str], None]) -> None:
    """AdamW on ``loss(step)``: 50 steps of warm-up, in the last third linearly down to nothing, gradients clipped to 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50, 3 * (steps - step) / steps)
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9:
            report(f"step {step + 1}/{steps}  loss {value.item():.4f}")
    model.eval()


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


class PositionedTransformer(TransformerLM):
    """The Transformer of bench/ with a learned vector added at each of ``context`` positions."""

    def __init__(self, vocab_size: int, D: int, NH: int, num_blocks: int, context: int):
        super().__init__(vocab_size, D, NH, num_blocks)
        self.positions = nn.Parameter(0.02 * torch.randn(context, D))

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embedding(idx) + self.positions[: idx.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Layered(nn.Module):
    """Embedding, a recurrent layer in nn.LSTM's form, linear head: token ids (B, S) -> logits (B, S, outputs)."""

    def __init__(self, vocab_size: int, layer: nn.Module, outputs: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, layer.input_size)  # type: ignore[arg-type]
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, outputs)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))[0])


# ---------------------------------------------------------------- results
@dataclass
class Record:
    """What one contender reached with one seed. ``values`` are numbers, or lists of numbers for curves."""

    example: str
    contender: str
    values: dict[str, Any]
    seed: int
    quick: bool
    cpu_seconds: float
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.contender, self.seed, self.quick


class Results:
    """The records of one example."""

    def __init__(self, records: Iterable[Record]):
        self.records = list(records)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(record.contender for record in self.records))

    @property
    def quick(self) -> bool:
        """Whether they come from small sizes, where some margins are smaller."""
        return any(record.quick for record in self.records)

    def of(self, contender: str, key: str) -> list[Any]:
        """The values of all seeds."""
        return [record.values[key] for record in self.records if record.contender == contender and key in record.values]

    def mean(self, contender: str, key: str) -> float:
        return statistics.mean(self.of(contender, key))

    def worst(self, contender: str, key: str) -> float:
        return min(self.of(contender, key))

    def best(self, contender: str, key: str) -> float:
        return max(self.of(contender, key))

    def cell(self, contender: str, key: str, style: str) -> str:
        """Mean and, with more than one seed, the standard deviation over the seeds."""
        found = self.of(contender, key)
        if not found:
            return ""
        mean = format(statistics.mean(found), style)
        return mean if len(set(found)) == 1 else f"{mean} ± {statistics.stdev(found):{style}}"


def rounded(value: Any) -> Any:
    """Six digits of a float, or of each in a list: what a file of results needs."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> list[Record]:
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def save(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{**asdict(record), "values": {name: rounded(value) for name, value in record.values.items()}} for record in records]
    path.write_text("".join(json.dumps(one) + "\n" for one in kept))


# ---------------------------------------------------------------- an example
@dataclass(frozen=True)
class Experiment:
    """One example.

    measure(contender, seed, quick, report) -> values; ``report`` shows a line of progress.
    columns: key of the values -> heading of the table and format; "parameters", how many numbers it learns, comes before them.
    claims(results) -> sentence with its margin -> whether the results support it.
    draw(figure, results): the picture; above it stands the finding, below it the setting, how it was measured.
    without_seed: contenders in which nothing is random, measured once.
    """

    name: str
    title: str
    about: str | None
    contenders: tuple[str, ...]
    measure: Callable[[str, int, bool, Callable[[str], None]], dict[str, Any]]
    columns: dict[str, tuple[str, str]]
    claims: Callable[[Results], dict[str, bool]]
    draw: Callable[[Any, Results], None]
    finding: str
    setting: str
    seeds: int = 3
    size: tuple[float, float] = (9.0, 5.0)
    without_seed: tuple[str, ...] = ()

    @classmethod
    def of_module(cls, measure: Callable[..., dict[str, Any]], title: str, contenders: Iterable[str], **parts: Any) -> Experiment:
        """Named as the module that has ``measure``, with its docstring, FINDING, SETTING, COLUMNS, ``claims`` and ``draw``."""
        module = measure.__globals__
        name = Path(module["__file__"]).stem  # also where the module runs as __main__
        own = {part.lower(): module[part] for part in ("FINDING", "SETTING", "COLUMNS", "claims", "draw")}
        return cls(name=name, title=title, about=module["__doc__"], contenders=tuple(contenders), measure=measure, **own, **parts)

    def run(self, seeds: Sequence[int], quick: bool, path: Path | None = None) -> Results:
        """Measures every contender with every seed. With a path each record is kept there when it is made."""
        kept = {record.key: record for record in load(path)} if path else {}
        cases = [(c, s) for s in seeds for c in self.contenders if c not in self.without_seed or s == min(seeds)]
        progress = Progress(len(cases))
        made = []
        for contender, seed in cases:
            progress.start(f"{self.name}: {contender}, seed {seed}")
            torch.manual_seed(seed)
            started = time.process_time()
            values = self.measure(contender, seed, quick, progress.show)
            seconds = round(time.process_time() - started, 1)
            where = {name: value for name, value in environment().items() if name in MACHINE}
            made.append(Record(self.name, contender, values, seed, quick, seconds, where))
            kept[made[-1].key] = made[-1]
            if path:
                save(path, list(kept.values()))
            progress.finish()
        return Results(made)

    def table(self, results: Results) -> str:
        """Markdown: a row for each contender."""
        columns = {"parameters": ("parameters", ",.0f")} | self.columns
        headings = ["", *(heading for heading, _ in columns.values()), "CPU s", "seeds"]
        lines = ["| " + " | ".join(headings) + " |", "|---|" + "--:|" * (len(headings) - 1)]
        for contender in self.contenders:
            mine = [record for record in results.records if record.contender == contender]
            if mine:
                cells = [results.cell(contender, key, style) for key, (_, style) in columns.items()]
                seconds = statistics.mean(record.cpu_seconds for record in mine)
                lines.append("| " + " | ".join([contender, *cells, f"{seconds:.0f}", str(len(mine))]) + " |")
        return "\n".join(lines)

    def picture(self, results: Results, path: Path) -> None:
        """Writes the PNG.

        Raises:
            MissingData: matplotlib is not installed.
        """
        from .drawing import headline  # here, because it reads Results

        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingData("matplotlib is not installed: pip install matplotlib") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        style: Any = {"font.size": 11.0, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12.0}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=self.size, dpi=150, layout="constrained")
            self.draw(figure, results)
            headline(figure, self.finding, self.setting)
            figure.savefig(path)

    def main(self) -> None:
        """The command line of one example."""
        parser = argparse.ArgumentParser(prog=f"python -m examples.{self.name}", description=self.title)
        parser.add_argument("--quick", action="store_true", help="small sizes, seconds instead of minutes")
        parser.add_argument("--seeds", type=int, default=1, help=f"how many seeds (docs/examples.md: {self.seeds})")
        parser.add_argument("--out", type=Path, default=LOCAL, help="folder of the picture and the results")
        arguments = parser.parse_args()
        torch.set_num_threads(1)
        try:
            results = self.run(range(arguments.seeds), arguments.quick)
            print(self.table(results), end="\n\n", flush=True)
            self.picture(results, arguments.out / f"{self.name}.png")
        except MissingData as error:
            raise SystemExit(f"{self.name}: {error}") from None
        for claim, holds in self.claims(results).items():
            print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
        print(f"picture: {os.path.relpath(arguments.out / self.name)}.png")
