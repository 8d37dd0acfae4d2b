"""Who speaks? Nine speakers say two vowels; recordings of 7 to 29 frames, 270 to learn from and 370 to recognise.

Recordings of different length go through the layers as one PackedSequence, bidirectional, exactly as they would go through
torch.nn.LSTM: the class is the only thing that changes. Because the sLSTM mixes memory within its heads only, the same width
costs it half the parameters. Data: Japanese Vowels (Kudo, Toyama & Shimbo, UCI), which the sktime package carries.

python -m examples.variable_length_classification     one seed of all four, half a minute of CPU time
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import xlstm_cuda

from .common import Experiment, Results, data_file, parameters, train
from .drawing import colour

CHANNELS, SPEAKERS, WIDTH, BATCH, STEPS = 12, 9, 32, 30, 300
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sLSTM": lambda: xlstm_cuda.sLSTM(CHANNELS, WIDTH, bidirectional=True),
    "mLSTM": lambda: xlstm_cuda.mLSTM(CHANNELS, WIDTH, bidirectional=True),
    "nn.LSTM": lambda: nn.LSTM(CHANNELS, WIDTH, bidirectional=True),
    "nn.LSTM, 20 units": lambda: nn.LSTM(CHANNELS, 20, bidirectional=True),
}


class Speaker(nn.Module):
    """A bidirectional layer, its mean over each recording, a linear map: PackedSequence -> logits (B, SPEAKERS)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(2 * layer.hidden_size, SPEAKERS)  # type: ignore[operator, arg-type]

    def forward(self, recordings: PackedSequence) -> Tensor:
        padded, lengths = pad_packed_sequence(self.layer(recordings)[0])  # (S, B, 2 H), zeros after a recording's end
        return self.head(padded.sum(0) / lengths.unsqueeze(1))


@functools.cache
def recordings() -> dict[str, tuple[list[Tensor], Tensor]]:
    """Of TRAIN and TEST: recordings (frames, CHANNELS), scaled by mean and deviation of TRAIN, and who speaks (0 to 8)."""
    rows = {}
    for part in ("TRAIN", "TEST"):
        file = data_file("sktime", "sktime", f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts")
        rows[part] = [line.split(":") for line in file.read_text().split("@data\n")[1].split()]
    series = {part: [numbers(row[:-1]) for row in mine] for part, mine in rows.items()}
    frames = torch.cat(series["TRAIN"])
    scaled = {part: [(one - frames.mean(0)) / frames.std(0) for one in mine] for part, mine in series.items()}
    return {part: (scaled[part], torch.tensor([int(row[-1]) - 1 for row in rows[part]])) for part in rows}


def numbers(channels: Sequence[str]) -> Tensor:
    """(frames, CHANNELS) of a line of the file."""
    return torch.tensor([[float(value) for value in channel.split(",")] for channel in channels]).T


FINDING = "In nn.LSTM's place: as good or better with half the parameters"
SETTING = (
    f"Japanese Vowels, 370 test recordings of 7 to 29 frames, bidirectional, PackedSequence; {STEPS} steps of {BATCH}; "
    "dots: seeds, bar: their mean"
)


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    model, generator = Speaker(LAYERS[contender]()), torch.Generator().manual_seed(seed)
    series, speakers = recordings()["TRAIN"]

    def loss(step: int) -> Tensor:
        chosen = torch.randperm(len(series), generator=generator)[:BATCH]
        return cross_entropy(model(pack_sequence([series[i] for i in chosen], enforce_sorted=False)), speakers[chosen])

    train(model, loss, 80 if quick else STEPS, 5e-3, report)
    series, speakers = recordings()["TEST"]
    with torch.no_grad():
        guesses = model(pack_sequence(series, enforce_sorted=False)).argmax(1)
        alone = torch.cat([model(pack_sequence([one])) for one in series[:20]]).argmax(1)
    return {
        "parameters": parameters(model),
        "accuracy": (guesses == speakers).float().mean().item(),
        "same alone": (alone == guesses[:20]).float().mean().item(),
    }


def claims(results: Results) -> dict[str, bool]:
    ours, theirs = results.mean("sLSTM", "accuracy"), results.mean("nn.LSTM", "accuracy")
    return {
        "The sLSTM recognises at least as many as nn.LSTM of the same width, to one percentage point, on average over seeds":
            ours >= theirs - 0.01,
        "It has less than half of nn.LSTM's parameters":
            2 * results.mean("sLSTM", "parameters") < results.mean("nn.LSTM", "parameters"),
        "Every model recognises 90 % or more with every seed":
            min(results.worst(name, "accuracy") for name in results.contenders) >= 0.90,
        "A recording is recognised the same alone as in the packed batch of all": results.worst("sLSTM", "same alone") == 1,
    }  # fmt: skip


def draw(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    for contender in results.contenders:
        found = results.of(contender, "accuracy")
        size, mean = results.mean(contender, "parameters"), results.mean(contender, "accuracy")
        shade = colour(contender)
        axes.scatter([size] * len(found), found, s=40, color=shade, alpha=0.45, linewidth=0)
        axes.plot([0.96 * size, 1.04 * size], [mean, mean], color=shade, linewidth=3)
        axes.annotate(contender, (1.05 * size, mean), xytext=(4, 0), textcoords="offset points", color=shade, va="center")
    axes.set_xscale("log")
    ticks = sorted({int(results.mean(name, "parameters")) for name in results.contenders})
    axes.set_xticks([ticks[0], 6000, ticks[-1]], ["4,200", "6,000", "12,400"])
    axes.minorticks_off()
    axes.set(xlabel="parameters", ylabel="recordings recognised", xlim=(3600, 18000))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    axes.grid(axis="y", alpha=0.2)


COLUMNS = {"accuracy": ("recognised", ".3f")}
EXPERIMENT = Experiment.of_module(measure, "Recordings of different length: PackedSequence, both directions", LAYERS, seeds=5)

if __name__ == "__main__":
    EXPERIMENT.main()
