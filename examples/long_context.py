"""Long context: 32,768 bytes of new text in one go, with the state carried over from piece to piece.

A recurrent model reads on for ever with the same memory, if its state stays sound that long. Two of the models train on windows
that follow each other, the state carried over (`states.detach`); the third, the same xLSTM, on separate windows, each read from
its start. All then read held-out text of 32,768 bytes in pieces of 256: with the state carried over, and, for comparison on
the same bytes, afresh in each piece. Text and models are those of language_model.

python -m examples.long_context               one seed of all three, three minutes of CPU time
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xlstm_cuda.cli.text import Windows
from xlstm_cuda.states import detach

from .common import Experiment, Results, parameters, train
from .drawing import curve, end_labels
from .language_model import BATCH, BLOCKS, CONTEXT, LSTM, WIDTH, state_bytes, text, xlstm

STEPS, LENGTH, TEXTS = 600, 32_768, 8
BORDERS = (0, 256, 1024, 4096, 8192, 16_384, LENGTH)
MIDDLES = tuple(math.sqrt(max(a, 128) * b) for a, b in pairwise(BORDERS))
MODELS: dict[str, tuple[Callable[[], nn.Module], float, bool]] = {
    "xLSTM[3:1], state carried": (xlstm, 3e-3, True),
    "xLSTM[3:1], separate windows": (xlstm, 3e-3, False),
    "nn.LSTM, state carried": (LSTM, 1e-2, True),
}


FINDING = "32,768 bytes in one go: the loss stays level, the memory stays at 59 kB"
SETTING = (
    f"King James Bible, {TEXTS} held-out texts of {LENGTH:,} bytes; trained {STEPS} steps of {BATCH} windows of {CONTEXT}; "
    "band: lowest to highest seed"
)


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    build, lr, carried = MODELS[contender]
    model, (training, held) = build(), text()
    windows = Windows(training, CONTEXT, BATCH, seed)
    lanes = training[: len(training) // BATCH * BATCH].view(BATCH, -1)  # each row of the batch reads its part of the text
    state: Any = None

    def loss(step: int) -> Tensor:
        nonlocal state
        if not carried:
            batch = windows.batch(step)
            return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        start = (seed * 7919 + step) * CONTEXT % (lanes.shape[1] - CONTEXT)
        batch = lanes[:, start : start + CONTEXT + 1].long()
        logits, last = model(batch[:, :-1], state, return_last_state=True)
        state = tuple(part.detach() for part in last) if isinstance(model, LSTM) else detach(last)
        return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    train(model, loss, 50 if quick else STEPS, lr, report)
    length, texts = (2048, 4) if quick else (LENGTH, TEXTS)
    tokens = torch.stack([held[k * length : (k + 1) * length + 1] for k in range(texts)]).long()
    carried_bits, kept = read(model, tokens, True)
    fresh_bits, _ = read(model, tokens, False)
    borders = [border for border in BORDERS if border < length] + [length]
    spans = [slice(a, b) for a, b in pairwise(borders)]
    return {
        "parameters": parameters(model), "early": carried_bits[256:1024].mean().item(),
        "late": carried_bits[length // 2 :].mean().item(), "late afresh": fresh_bits[length // 2 :].mean().item(),
        "carried": [carried_bits[span].mean().item() for span in spans],
        "gain": [(fresh_bits - carried_bits)[span].mean().item() for span in spans], "bytes": kept,
    }  # fmt: skip


@torch.no_grad()
def read(model: nn.Module, tokens: Tensor, carry: bool) -> tuple[Tensor, int]:
    """Bits of every byte, a mean over the texts (S,), and the bytes of one text's state at the end; tokens (TEXTS, S + 1)."""
    state, bits, sizes = None, [], set()
    for start in range(0, tokens.shape[1] - 1, CONTEXT):
        piece = tokens[:, start : start + CONTEXT + 1]
        logits, last = model(piece[:, :-1], state, return_last_state=True)
        losses = cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten(), reduction="none")
        bits.append(losses.view(len(tokens), -1).mean(0) / math.log(2))
        sizes.add(state_bytes(last) // len(tokens))
        state = last if carry else None
    (size,) = sizes  # the same after every piece
    return torch.cat(bits), size


def claims(results: Results) -> dict[str, bool]:
    carried, separate, _ = MODELS
    late, afresh, early = (results.mean(carried, key) for key in ("late", "late afresh", "early"))
    gained, share = (0.01, 0.10) if results.quick else (0.03, 0.01)
    attention = 2 * BLOCKS * WIDTH * 4 * (2048 if results.quick else LENGTH)  # bytes of keys and values, float32
    return {
        f"Trained with the state carried over, the xLSTM saves {gained} bits per byte or more in the second half of each text "
        "over starting afresh in every piece": late <= afresh - gained,
        "Its loss there is not more than 0.1 bits per byte above that at 256 to 1,024 bytes": late <= early + 0.1,
        f"Its state, the same size after every piece, takes less than {share:.0%} of the keys and values that a Transformer "
        "of the same size has at the end": results.mean(carried, "bytes") < share * attention,
        "Trained on separate windows it gains less from the carried state":
            results.mean(separate, "late afresh") - results.mean(separate, "late") < afresh - late,
        "Its loss is the lower one nevertheless, and stays level too: shuffled windows train better than text in its order":
            results.quick or results.mean(separate, "late") < min(late, results.mean(separate, "early") + 0.1),
    }  # fmt: skip


def draw(figure: Any, results: Results) -> None:
    loss, gain = figure.subplots(1, 2)
    carried, separate, _ = MODELS
    middles = MIDDLES[: len(results.of(carried, "gain")[0])]
    for name in MODELS:
        for axes, key in ((loss, "carried"), (gain, "gain")):
            style = {"linestyle": ":"} if name == separate else {}
            curve(axes, middles, results, name, key, marker="o", markersize=4, **style)
    gain.axhline(0, color="black", linewidth=0.8)
    loss.set(ylabel="bits per byte, state carried over")
    gain.set(ylabel="bits per byte saved by carrying the state")
    for axes, key in ((loss, "carried"), (gain, "gain")):
        axes.set_xscale("log", base=2)
        axes.set_xticks([256, 1024, 4096, 16_384], ["256", "1,024", "4,096", "16,384"])
        axes.set_xlabel("bytes read before")
        end_labels(axes, middles[-1], results, MODELS, key)


COLUMNS = {
    "early": ("bits per byte at 256 to 1,024", ".3f"),
    "late": ("at 16,384 to 32,768", ".3f"),
    "late afresh": ("the same bytes, afresh in each piece", ".3f"),
    "bytes": ("bytes of state", ",.0f"),
}
EXPERIMENT = Experiment.of_module(measure, "Long context: 32,768 steps with the state carried over", MODELS, size=(13.0, 5.0))

if __name__ == "__main__":
    EXPERIMENT.main()
