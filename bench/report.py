"""docs/performance.md from the committed results: `python -m bench.report`. No figure on that page is typed by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import busy, kernels, profile, records, table
from .checkout import ROOT
from .environment import title
from .records import Record
from .roofline import share

RESULTS, PAGE = ROOT / "bench/results", ROOT / "docs/performance.md"
NOT_COMMITTED = ("local", "dry-run")
METRICS = {"time": "ms", "graph time": "ms as a CUDA graph", "memory": "peak MiB", "state": "bytes of state"}
INTRODUCTION = """# Performance

`python -m bench.report` writes this page from the result files in `bench/results`, so do not edit it. `python -m bench --quick`
measures on your machine.

- **ms**: the median of interleaved runs; in brackets the fastest run, the slowest run, and their number.
  Quick calls are repeated, so that the caches hold their own data, and freed memory is kept by the process, not returned to the
  system between calls (`bench/timing.py`).
- **ratio**: this contender's time over that of the one named, the median over the rounds of one run.
- **roofline**: how long the work of the case would take at the rates of a matmul and of a copy on the same machine, as a share of
  the measured time (`bench/roofline.py`). It is above 100 % where a kernel leaves out work that the count includes: scores above
  the diagonal, and the state where one chunk is the whole sequence.
- **error**: before it was timed, the contender's outputs and gradients were compared with the float64 reference, and this is the
  largest difference. A contender without an error computes another function.

[What was tried](kernel-notes.md) to get here; [every kernel](../bench/results/static/kernels.md) with its registers, spills and
bytes.
"""
NO_GPU = """## On a GPU

There is no result yet, because nothing has been run on a GPU. `make gpu-check`, `make gpu-bench` and `make gpu-deep` check and
measure on one, and their result files will make this section.
"""


def render(folder: Path = RESULTS) -> str:
    """The page."""
    sets = [(path.parent, records.load(path)) for path in sorted(folder.glob(f"*/{records.FILE}"))]
    sets = [(where, found) for where, found in sets if found and not where.name.startswith(NOT_COMMITTED)]
    of_gpu = [one for one in sets if any(record.device == "cuda" for record in one[1])]
    parts = [INTRODUCTION]
    parts += [section(where, found) for where, found in of_gpu] or [NO_GPU]
    parts += [section(where, found) for where, found in sets if (where, found) not in of_gpu]
    return "\n".join(parts)


def section(where: Path, found: Sequence[Record]) -> str:
    """One set of results."""
    first = found[0].environment
    peers = ", ".join(f"{name} {version}" for name, version in first["peers"].items())
    lines = [
        f"## {(first.get('gpu') or {}).get('name') or first['processor']}",
        "",
        f"{title(first)}; commit {first['commit']}, {first['date']}; {peers}.",
        f"Files: [bench/results/{where.name}](../bench/results/{where.name}).",
        "",
    ]
    for suite in dict.fromkeys(record.suite for record in found):
        lines += suite_table([record for record in found if record.suite == suite])
        pictures = sorted(where.glob(f"{suite}-*.png"))
        lines += [f"![{picture.stem}]({os.path.relpath(picture, PAGE.parent)})\n" for picture in pictures]
    if (picture := where / "roofline.png").exists():
        lines += ["### Share of the roofline", "", f"![roofline]({os.path.relpath(picture, PAGE.parent)})\n"]
    if (file := where / kernels.FILE).exists():
        lines += kernel_lines(json.loads(file.read_text()))
    if (file := where / profile.FILE).exists():
        lines += profile_lines(json.loads(file.read_text()))
    if (file := where / busy.FILE).exists():
        lines += busy_lines(json.loads(file.read_text()))
    return "\n".join(lines)


def suite_table(found: Sequence[Record]) -> list[str]:
    """A row for each contender of each case, a column for each metric that was taken."""
    metrics = [metric for metric in METRICS if any(record.metric == metric for record in found)]
    lines = [
        f"### {found[0].suite}",
        "",
        f"| case | contender | {' | '.join(METRICS[metric] for metric in metrics)} | tokens/s | ratio | roofline | error |",
        f"|---|---|{'--:|' * len(metrics)}--:|--:|--:|--:|",
    ]
    for case in dict.fromkeys((record.case, record.passes) for record in found):
        mine = [record for record in found if (record.case, record.passes) == case]
        for place, name in enumerate(dict.fromkeys(record.contender for record in mine)):
            by_metric = {record.metric: record for record in mine if record.contender == name}
            what = f"{case[0]}, {case[1]}" if place == 0 else ""
            figures = " | ".join(figure(by_metric.get(metric)) for metric in metrics)
            columns = figures, speed(by_metric), ratios(by_metric), of_roofline(by_metric), error(by_metric)
            lines.append(f"| {what} | {name} | {' | '.join(columns)} |")
    return [*lines, ""]


def figure(record: Record | None) -> str:
    if record is None:
        return ""
    if record.metric == "state":
        return table.size(record.median)
    if record.metric == "memory":
        return f"{record.median:,.1f}"
    return f"{record.median:.3g} ({record.minimum:.3g} to {record.maximum:.3g}, {record.runs})"


def speed(by_metric: dict[str, Record]) -> str:
    time = by_metric.get("time")
    return f"{1e3 * time.tokens / time.median:,.0f}" if time else ""


def ratios(by_metric: dict[str, Record]) -> str:
    time = by_metric.get("time")
    return ", ".join(f"{value:.2f}x {name}" for name, value in time.ratios.items()) if time else ""


def of_roofline(by_metric: dict[str, Record]) -> str:
    time = by_metric.get("time")
    return f"{share(time.roofline, time.median):.1%}" if time and time.roofline else ""


def error(by_metric: dict[str, Record]) -> str:
    errors = next(iter(by_metric.values())).gate["errors"]
    return f"{max(errors.values()):.0e}" if errors else ""


def kernel_lines(found: dict[str, Any]) -> list[str]:
    """The mLSTM's kernels without what surrounds them."""
    lines = [
        "### The mLSTM's kernels alone",
        "",
        f"`python -m bench kernels`, commit {found['commit']}: the lowest of up to 25 rounds.",
        "",
    ]
    return [*lines, *kernels.lines(found), ""]


def profile_lines(found: dict[str, Any]) -> list[str]:
    """Where training and decoding of the default model spend their time."""
    lines = [
        "### Where the time goes",
        "",
        f"`python -m bench profile`, commit {found['commit']}, {found['threads']} threads: the model of"
        " `python -m xlstm_cuda train` with its defaults.",
        "",
        "| | ms | recurrences | matmuls outside them | rest | largest of the rest |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name, one in found["shares"].items():
        rest = 1 - one["matmuls"] - one["recurrences"]
        largest = ", ".join(f"{operator} {share:.1%}" for operator, share in list(one["rest"].items())[:5])
        lines.append(f"| {name} | {one['ms']:.2f} | {one['recurrences']:.1%} | {one['matmuls']:.1%} | {rest:.1%} | {largest} |")
    return [*lines, ""]


def busy_lines(found: dict[str, Any]) -> list[str]:
    """How training goes on beside other processes."""
    command = f"{found['steps']} steps of `python -m xlstm_cuda train`, process start included, medians of {found['rounds']}"
    lines = ["### Beside busy processes", "", f"`python -m bench busy`, commit {found['commit']}: {command}.", ""]
    return [*lines, *(f"- {line}" for line in busy.lines(found)), ""]


def main() -> None:
    PAGE.write_text(render())
    print(f"{PAGE.relative_to(ROOT)} is up to date")


if __name__ == "__main__":
    main()
