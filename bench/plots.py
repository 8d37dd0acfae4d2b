"""PNG plots of a set of results: time, memory and speed against length; ratios as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .contenders import is_ours
from .records import Record
from .roofline import share

OURS, PEERS = ("#1f5fa8", "#c0392b", "#2e8b57"), ("#8a8a8a", "#d9a441", "#9b6fb0", "#5fb0b7", "#b07a5f", "#444444")
PANELS = {"time": "ms a call", "memory": "peak memory, MiB", "state": "bytes of state"}


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """One picture for a group whose shapes differ in their lengths alone, one of all ratios, one of shares of the roofline.

    None without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for suite, group in dict.fromkeys((record.suite, record.group) for record in records):
        mine = [record for record in records if (record.suite, record.group) == (suite, group)]
        if differ_in_length(mine):
            figure = Figure(figsize=(4.2 * len(panels(mine)), 4.2), dpi=130, layout="constrained")
            lines(figure, mine)
            drawn.append(folder / f"{suite}-{group.replace(' + ', '-').replace(' ', '-')}.png")
            figure.savefig(drawn[-1])
    times = [record for record in records if record.metric == "time"]
    with_ratio, with_roofline = [r for r in times if r.ratios], [r for r in times if r.roofline]
    for name, mine, bars in (("ratios", with_ratio, ratio_bars), ("roofline", with_roofline, roofline_bars)):
        if mine:
            figure = Figure(figsize=(9, 1.2 + 0.24 * len(mine)), dpi=130, layout="constrained")
            bars(figure, mine)
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1])
    return drawn


def differ_in_length(records: Sequence[Record]) -> bool:
    """Whether the shapes are of several lengths, and of nothing else: then a line over S means something."""
    others = {tuple((axis, size) for axis, size in record.shape.items() if axis != "S") for record in records}
    return len(others) == 1 and len({record.shape["S"] for record in records}) > 1


def panels(records: Sequence[Record]) -> list[str]:
    held = [metric for metric in PANELS if any(record.metric == metric for record in records)]
    return [*held, "tokens/s"]


def lines(figure: Any, records: Sequence[Record]) -> None:
    """A panel for each metric against S, logarithmic both ways, a line for each contender."""
    names = list(dict.fromkeys(record.contender for record in records))
    colours = {name: colour(name, names) for name in names}
    axes = figure.subplots(1, len(panels(records)), squeeze=False)[0]
    for panel, one in zip(panels(records), axes):
        metric = "time" if panel == "tokens/s" else panel
        for name in names:
            points = [r for r in records if r.contender == name and r.metric == metric]
            points.sort(key=lambda r: r.shape["S"])
            if points:
                values = [1e3 * r.tokens / r.median if panel == "tokens/s" else r.median for r in points]
                one.plot(
                    [r.shape["S"] for r in points], values, "o-", color=colours[name], label=name, linewidth=1.6, markersize=4
                )
        one.set_xscale("log", base=2)
        one.set_yscale("log")
        one.set_xlabel("context length" if records[0].suite == "decode" else "sequence length S")
        one.set_title(PANELS.get(panel, panel), fontsize=10)
        one.grid(alpha=0.2, which="both")
    axes[0].legend(fontsize=7, frameon=False)
    first = records[0]
    figure.suptitle(f"{first.case.split(' B')[0]}, {first.passes}, {first.dtype}, {machine(first)}", fontsize=9)


def ratio_bars(figure: Any, records: Sequence[Record]) -> None:
    """How many times as long each takes as what it is compared with."""
    one = figure.subplots()
    labels, values, colours = [], [], []
    for record in reversed(records):
        for against, value in record.ratios.items():
            labels.append(f"{record.case}: {record.contender} / {against}")
            values.append(value)
            colours.append(OURS[0] if value >= 1 else OURS[1])
    one.barh(range(len(values)), [value - 1 for value in values], left=1, color=colours, height=0.7)
    for place, value in enumerate(values):
        one.annotate(f" {value:.2f}x ", (value, place), va="center", ha="left" if value >= 1 else "right", fontsize=6)
    one.set_yticks(range(len(labels)), labels, fontsize=6)
    one.set_xscale("log")
    one.axvline(1, color="black", linewidth=0.8)
    one.margins(x=0.15)
    one.set_title(f"time of the first over the second, {machine(records[0])}", fontsize=9)


def roofline_bars(figure: Any, records: Sequence[Record]) -> None:
    """Which share of the machine's best rate of the case's work each reaches."""
    one = figure.subplots()
    mine = list(reversed(records))
    values = [100 * share(record.roofline, record.median) for record in mine]
    one.barh(range(len(mine)), values, color=[OURS[0] if is_ours(r.contender) else PEERS[0] for r in mine], height=0.7)
    for place, value in enumerate(values):
        one.annotate(f" {value:.2g} %", (value, place), va="center", fontsize=6)
    one.set_yticks(range(len(mine)), [f"{r.case}: {r.contender}" for r in mine], fontsize=6)
    one.set_xscale("log")
    one.set_xlim(left=min(values) / 2, right=max(100, *values) * 2)
    one.axvline(100, color="black", linewidth=0.8)
    one.set_title(f"per cent of the roofline (a matmul and a copy on this machine), {machine(records[0])}", fontsize=9)


def colour(name: str, names: Sequence[str]) -> str:
    ours = [one for one in names if is_ours(one)]
    if name in ours:
        return OURS[ours.index(name) % len(OURS)]
    return PEERS[[one for one in names if one not in ours].index(name) % len(PEERS)]


def machine(record: Record) -> str:
    found = record.environment
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    return (found.get("gpu") or {}).get("name") or f"{found['processor']}, {threads}"
