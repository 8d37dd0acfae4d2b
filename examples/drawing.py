"""What the pictures of the examples share: a colour for each kind of model, seeds as a band, names at the ends."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .common import Results

INK, GREY = "#222222", "#8a8a8a"
COLOURS = {"sLSTM": "#1f5fa8", "mLSTM": "#2e8b57", "xLSTM": "#1f5fa8", "nn.LSTM": "#c0392b", "Transformer": "#d9a441"}


def colour(contender: str) -> str:
    """The same colour for the same kind of model in every picture."""
    return next((shade for kind, shade in COLOURS.items() if kind in contender), GREY)


def curve(axes: Any, x: Sequence[float], results: Results, contender: str, key: str, **line: Any) -> None:
    """The mean over seeds as a line, from the lowest to the highest seed as a band. nn.LSTM is dashed: it may lie on another."""
    found = torch.tensor(results.of(contender, key), dtype=torch.float64)
    style = {"color": colour(contender), "linewidth": 2.2, "linestyle": "--" if "nn.LSTM" in contender else "-"}
    axes.plot(x, found.mean(0), **{**style, **line})
    axes.fill_between(x, found.amin(0), found.amax(0), color=colour(contender), alpha=0.18, linewidth=0)


def end_labels(axes: Any, x: float, results: Results, contenders: Iterable[str], key: str, gap: float = 0.05) -> None:
    """The contenders' names at the ends of their curves, moved apart where they would touch; gap: share of the axis' height.

    To be called when the limits of the axes are set.
    """
    ends = sorted((statistics.mean(curve[-1] for curve in results.of(name, key)), name) for name in contenders)
    place = axes.transData  # in pixels, so that logarithmic axes need no case of their own
    heights = [float(place.transform((x, value))[1]) for value, _ in ends]
    bottom, top = (place.transform((x, limit))[1] for limit in axes.get_ylim())
    for _ in range(100):
        for k in range(1, len(heights)):
            apart = max(0.0, gap * (top - bottom) - (heights[k] - heights[k - 1]))
            heights[k - 1 : k + 1] = heights[k - 1] - apart / 2, heights[k] + apart / 2
    for height, (_, name) in zip(heights, ends):
        at = (x, place.inverted().transform((place.transform((x, ends[0][0]))[0], height))[1])
        style = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(name, at, xytext=(6, 0), color=colour(name), **style)


def accuracies(axes: Any, x: Sequence[float], results: Results, trained: float) -> None:
    """Every contender's "accuracy" over x, from 0 to 1 and in percent, up to ``trained`` on grey. The axis of x is set before."""
    axes.axvspan(x[0], trained, color=GREY, alpha=0.10, linewidth=0)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for contender in results.contenders:
        curve(axes, x, results, contender, "accuracy", marker="o", markersize=4)
    end_labels(axes, x[-1], results, results.contenders, "accuracy")


def headline(figure: Any, finding: str, setting: str) -> None:
    """What the picture shows, and under it how it was measured."""
    figure.suptitle(finding, fontsize=14, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(setting, fontsize=8.5, color=GREY, x=0.01, ha="left")
