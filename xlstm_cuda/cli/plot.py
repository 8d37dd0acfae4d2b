"""The loss curve of a run as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from .errors import CommandError

TRAINING, HELD_OUT, REFERENCE = "#7f9fc4", "#c0392b", "#666666"


def loss_curve(
    title: str, history: dict[str, list[list[float]]], ngrams: Sequence[float], tokens_per_step: int, unit: str = "bytes"
) -> bytes:
    """A PNG: bits per byte over steps, training and held-out, with the n-gram figures as horizontal lines.

    Args:
        history: "training" and "held_out", each a list of [step, bits per byte].
        ngrams: held-out bits per byte of the orders 1, 2, ...
        unit: what tokens are called.

    Raises:
        CommandError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise CommandError("matplotlib is not installed, so no loss curve is drawn (pip install matplotlib)") from None

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    training, held_out = history["training"], history["held_out"]
    figures = [value for _, value in training + held_out] + [*ngrams] or [0.0, 8.0]
    lowest, highest = min(figures), max(figures)

    for order, bits in enumerate(ngrams, 1):
        axes.axhline(bits, color=REFERENCE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{order}-gram {bits:.2f}", (1, bits), xycoords=("axes fraction", "data"), xytext=(-4, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize=8, color=REFERENCE,
        )  # fmt: skip
    if training:
        steps, bits_per_byte = zip(*training)
        axes.plot(steps, bits_per_byte, color=TRAINING, linewidth=0.7, alpha=0.55, zorder=2)
        axes.plot(steps, _smooth(bits_per_byte), color=TRAINING, linewidth=1.8, label="training (smoothed)", zorder=3)
    if held_out:
        steps, bits_per_byte = zip(*held_out)
        label = f"held out, last {bits_per_byte[-1]:.3f}"
        axes.plot(steps, bits_per_byte, color=HELD_OUT, linewidth=1.8, marker="o", markersize=4, label=label, zorder=4)

    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("bits per byte")
    axes.set_xlim(left=0)
    axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    axes.grid(alpha=0.2)
    axes.spines["right"].set_visible(False)
    to_bytes, to_steps = (lambda step: np.multiply(step, tokens_per_step)), (lambda count: np.divide(count, tokens_per_step))
    read = axes.secondary_xaxis("top", functions=(to_bytes, to_steps))
    read.xaxis.set_major_formatter(EngFormatter(sep=""))
    read.set_xlabel(f"{unit} read", fontsize=9)
    read.tick_params(labelsize=8)
    if training or held_out:
        axes.legend(frameon=False, loc="upper right")

    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window around each point, a twenty-fifth of the curve wide and narrower at both ends."""
    count = len(values)
    reach = [min(place, count - 1 - place, count // 50) for place in range(count)]
    return [float(np.mean(values[place - r : place + r + 1])) for place, r in enumerate(reach)]
