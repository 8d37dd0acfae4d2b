"""Streaming: a glucose sensor sends a value every five minutes; after each, forecast the next 30 and 60 minutes.

The model is trained on stretches of ten hours and then follows the sensor with `layer.step`, one value at a time: the same
forecasts as one pass over the whole recording, at a constant cost and with a state of about a kilobyte, however long it runs.
Beside it persistence (no change), a linear map of the last two hours (AR), and nn.LSTM. Data: continuous glucose monitoring of
one person, 52,281 values of 2010 (public domain), which the bokeh_sampledata package carries; the last fifth is the test.

python -m examples.streaming_forecast         one seed of all six, half a minute of CPU time
"""

from __future__ import annotations

import csv
import functools
import gzip
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import xlstm_cuda

from .common import Experiment, Results, data_file, parameters, train
from .drawing import INK, colour

AHEAD, PAST = (6, 12), 24  #: steps of five minutes
STRETCH, BATCH, STEPS = 128, 32, 300
UNITS = 48  #: of the sLSTM, whose state is h, c, n, m of each in float32
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sLSTM": lambda: xlstm_cuda.sLSTM(2, UNITS, batch_first=True),
    "mLSTM": lambda: xlstm_cuda.mLSTM(2, 32, batch_first=True),
    "nn.LSTM": lambda: nn.LSTM(2, 48, batch_first=True),
    "nn.LSTM, 26 units": lambda: nn.LSTM(2, 26, batch_first=True),
}


class Forecaster(nn.Module):
    """Level and last change of the glucose (B, S, 2) -> its change in 30 and in 60 minutes, mg/dl (B, S, 2), and the state."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, len(AHEAD))  # type: ignore[arg-type]

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.layer(x, state)
        return 30 * self.head(h), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One value, (B, 2)."""
        step: Any = getattr(self.layer, "step", None)  # nn.LSTM has none: a sequence of one
        h, state = step(x, state) if step else self.layer(x.unsqueeze(1), state)
        return 30 * self.head(h.view(len(x), -1)), state


@functools.cache
def recordings() -> tuple[list[Tensor], list[Tensor]]:
    """Stretches without a gap of at least 64 values, mg/dl: those of the first four fifths of the time, and the rest."""
    with gzip.open(data_file("bokeh_sampledata", "bokeh_sampledata", "_data/CGM.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    start = datetime(2010, 1, 1)
    seconds = torch.tensor(
        [(datetime.fromisoformat(row["datetime"]) - start).total_seconds() for row in rows], dtype=torch.float64
    )
    gaps = ((seconds.diff() - 300).abs() > 60).nonzero().squeeze(1) + 1
    values = torch.tensor([float(row["glucose"]) for row in rows])
    pieces = [piece for piece in values.tensor_split(gaps.tolist()) if len(piece) >= 64]
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    border = int((ends <= 0.8 * ends[-1]).sum())
    return pieces[:border], pieces[border:]


def inputs(values: Tensor) -> Tensor:
    """Level and last change, scaled; values (..., S) -> (..., S, 2)."""
    change = torch.diff(values, prepend=values[..., :1])
    return torch.stack([(values - 150) / 60, change / 10], -1)


def changes(values: Tensor) -> Tensor:
    """What is to be forecast, (..., S - 12, 2)."""
    now = values.shape[-1] - AHEAD[-1]
    return torch.stack([values[..., ahead : ahead + now] - values[..., :now] for ahead in AHEAD], -1)


def fit_ar() -> Tensor:
    """Least squares from the last PAST values and a constant, (PAST + 1, 2)."""
    pieces = recordings()[0]
    past = torch.cat([piece[: -AHEAD[-1]].unfold(0, PAST, 1) for piece in pieces]).double()
    future = torch.cat([changes(piece)[PAST - 1 :] for piece in pieces]).double()
    return torch.linalg.lstsq(torch.cat([past, torch.ones(len(past), 1)], 1), future).solution.float()


FINDING = f"One value at a time, {4 * UNITS * 4} bytes of memory: level with nn.LSTM at a third of its size"
SETTING = (
    f"Continuous glucose monitoring, last fifth of 52,281 values; {STEPS} steps of {BATCH} stretches of {STRETCH}; "
    "root-mean-square errors, mean over seeds"
)


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    test = recordings()[1]
    if contender == "persistence":
        return errors([torch.zeros(len(piece), 2) for piece in test])
    if contender == "AR, 24 values":
        weight = fit_ar()
        padded = [torch.cat([piece[:1].expand(PAST - 1), piece]).unfold(0, PAST, 1) for piece in test]
        return {"parameters": weight.numel(), **errors([past @ weight[:-1] + weight[-1] for past in padded])}
    model, generator = Forecaster(LAYERS[contender]()), torch.Generator().manual_seed(seed)
    starts = torch.cat([torch.tensor([[i, s] for s in range(len(piece) - STRETCH - AHEAD[-1])]).view(-1, 2).long()
                        for i, piece in enumerate(recordings()[0])])  # fmt: skip

    def loss(step: int) -> Tensor:
        chosen = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
        values = torch.stack([recordings()[0][i][s : s + STRETCH + AHEAD[-1]] for i, s in chosen.tolist()])
        return mse_loss(model(inputs(values)[:, :STRETCH])[0] / 30, changes(values) / 30)

    train(model, loss, 300 if quick else STEPS, 5e-3, report)
    with torch.no_grad():
        forecasts = [model(inputs(piece)[None])[0][0] for piece in test]
        longest = max(range(len(test)), key=lambda i: len(test[i]))
        streamed = stream(model, inputs(test[longest]), forecasts[longest])
    drawn = {"day": test[longest][:288].tolist(), "forecast": (test[longest][:288] + forecasts[longest][:288, 0]).tolist()}
    return {"parameters": parameters(model), **errors(forecasts), **streamed, **drawn}


def errors(forecasts: list[Tensor]) -> dict[str, float]:
    """Root-mean-square errors in mg/dl, where PAST values are known and the future is."""
    pieces = zip(forecasts, recordings()[1])
    off = torch.cat([(forecast[: -AHEAD[-1]] - changes(piece))[PAST - 1 :] for forecast, piece in pieces])
    return {f"{5 * ahead} minutes": value for ahead, value in zip(AHEAD, off.square().mean(0).sqrt().tolist())}


def stream(model: Forecaster, x: Tensor, one_pass: Tensor) -> dict[str, float]:
    """x (S, 2) one value at a time: the largest difference from one pass, the median time and the state's size."""
    state, times, difference = None, [], 0.0
    for t in range(len(x)):
        started = time.perf_counter()
        forecast, state = model.step(x[t : t + 1], state)
        times.append(1e6 * (time.perf_counter() - started))
        difference = max(difference, (forecast[0] - one_pass[t]).abs().max().item())
    size = sum(part.numel() * part.element_size() for part in state)  # type: ignore[union-attr]
    return {"difference": difference, "microseconds": statistics.median(times), "bytes": size}


def claims(results: Results) -> dict[str, bool]:
    hour = {name: results.mean(name, "60 minutes") for name in results.contenders}
    ours = ("sLSTM", "mLSTM")
    return {
        "One value at a time gives the forecasts of one pass, to 0.01 mg/dl over a whole recording":
            max(results.best(name, "difference") for name in ours) < 0.01,
        "sLSTM and mLSTM are 2 % or more better than AR, and 10 % or more better than persistence, an hour ahead":
            max(hour[name] for name in ours) < min(0.98 * hour["AR, 24 values"], 0.9 * hour["persistence"]),
        "sLSTM and mLSTM are level with nn.LSTM: their mean errors are at most 2 % above its":
            max(hour[name] for name in ours) < 1.02 * hour["nn.LSTM"],
        "The sLSTM has less than a third of nn.LSTM's parameters":
            3 * results.mean("sLSTM", "parameters") < results.mean("nn.LSTM", "parameters"),
    }  # fmt: skip


def draw(figure: Any, results: Results) -> None:
    day, bars = figure.subplots(1, 2, width_ratios=(2.1, 1))
    values, forecast = results.of("sLSTM", "day")[0], results.of("sLSTM", "forecast")[0]
    hours = [5 * t / 60 for t in range(len(values))]
    day.plot(hours, values, color=INK, linewidth=1.8)
    day.plot([hour + 0.5 for hour in hours], forecast, color=colour("sLSTM"), linewidth=1.8)
    day.set(xlabel="hours", ylabel="glucose, mg/dl", xlim=(0, 24))
    day.text(0.02, 0.98, "sensor", color=INK, transform=day.transAxes, va="top")
    day.text(0.02, 0.91, "forecast of the sLSTM,\nhalf an hour before", color=colour("sLSTM"), transform=day.transAxes, va="top")
    for place, name in enumerate(sorted(results.contenders, key=lambda name: -results.mean(name, "30 minutes"))):
        mean = results.mean(name, "30 minutes")
        bars.barh(place, mean, color=colour(name), height=0.7)
        bars.text(mean - 0.5, place, f"{mean:.1f}", ha="right", va="center", color="white", fontweight="bold")
        bars.text(0.5, place, name, ha="left", va="center", color="white")
    bars.set_yticks([])
    bars.spines["left"].set_visible(False)
    bars.set_xlabel("error half an hour ahead, mg/dl")


COLUMNS = {
    "30 minutes": ("RMSE at 30 min, mg/dl", ".2f"),
    "60 minutes": ("at 60 min", ".2f"),
    "difference": ("largest difference of steps from one pass", ".0e"),
    "microseconds": ("µs a step", ".0f"),
    "bytes": ("bytes of state", ",.0f"),
}
EXPERIMENT = Experiment.of_module(
    measure,
    "Streaming forecasts: one value at a time",
    (*LAYERS, "AR, 24 values", "persistence"),
    size=(11.0, 4.8),
    without_seed=("AR, 24 values", "persistence"),
)

if __name__ == "__main__":
    EXPERIMENT.main()
