"""Associative recall (MQAR): read key-value pairs, then give the value of each key that is asked for.

The memory has to hold every pair at once. The mLSTM's matrix memory does, and finds values by key; the vectors of sLSTM and
nn.LSTM have to squeeze them in. Trained with up to 8 pairs, tested with up to 16. The Transformer, with learned positions, looks
the pairs up in its context: as well as the mLSTM at the lengths of its training, and not beyond them, where it has not learned
the positions.

python -m examples.associative_recall         one seed of all four, one minute of CPU time
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xlstm_cuda import (
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)  # fmt: skip

from .common import Experiment, Layered, PositionedTransformer, Results, parameters, train
from .drawing import GREY, accuracies

KEYS = VALUES = 32
ASKED, MOST_PAIRS, WIDTH, BATCH, STEPS = 16, 8, 64, 32, 600
PAIRS = (2, 4, 6, 8, 10, 12, 14, 16)


def xlstm(slstm_at: Any) -> xLSTMLMModel:
    """Two blocks of the paper."""
    return xLSTMLMModel(
        xLSTMLMModelConfig(
            vocab_size=KEYS + VALUES, num_blocks=2, embedding_dim=WIDTH, slstm_at=slstm_at,
            mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=2)),
            slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=2)),
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mLSTM, xLSTM[1:0]": lambda: xlstm([]),
    "sLSTM, xLSTM[0:1]": lambda: xlstm("all"),
    "nn.LSTM, 2 layers": lambda: Layered(KEYS + VALUES, nn.LSTM(WIDTH, WIDTH, 2, batch_first=True), KEYS + VALUES),
    "Transformer, 2 blocks": lambda: PositionedTransformer(KEYS + VALUES, WIDTH, 2, 2, 2 * PAIRS[-1] + ASKED),
}


def questions(count: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (count, 2 pairs + ASKED), k1 v1 k2 v2 ... and the keys that are asked for, and their values (count, ASKED)."""
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(KEYS, KEYS + VALUES, (count, pairs), generator=generator)
    asked = torch.randint(pairs, (count, ASKED), generator=generator)
    return torch.cat([torch.stack([keys, values], 2).flatten(1), keys.gather(1, asked)], 1), values.gather(1, asked)


FINDING = "A matrix memory holds the pairs that a vector memory loses"
SETTING = f"{KEYS} keys, {VALUES} values, {ASKED} questions; {STEPS} steps of {BATCH} sequences; band: lowest to highest seed"


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    model, generator = MODELS[contender](), torch.Generator().manual_seed(seed)
    steps, most = (300, 4) if quick else (STEPS, MOST_PAIRS)

    def loss(step: int) -> Tensor:
        tokens, values = questions(BATCH, min(most, 1 + int(most * step / (0.4 * steps))), generator)
        return cross_entropy(model(tokens)[:, -ASKED:].flatten(0, 1), values.flatten())

    train(model, loss, steps, 1e-3 if "Transformer" in contender else 3e-3, report)
    shares = [accuracy(model, pairs, 64 if quick else 256) for pairs in PAIRS]
    trained = PAIRS.index(most)
    return {"parameters": parameters(model), "accuracy": shares, "as trained": shares[trained], "at 16": shares[-1]}


@torch.no_grad()
def accuracy(model: nn.Module, pairs: int, count: int) -> float:
    tokens, values = questions(count, pairs, torch.Generator().manual_seed(10_000))
    return (model(tokens)[:, -ASKED:].argmax(-1) == values).float().mean().item()


def claims(results: Results) -> dict[str, bool]:
    mlstm, slstm, lstm, _ = MODELS
    return {
        "The mLSTM gives 98 % or more of the values with as many pairs as in training, with every seed":
            results.worst(mlstm, "as trained") >= 0.98,
        "sLSTM and nn.LSTM stay 40 percentage points or more below it":
            results.worst(mlstm, "as trained") - max(results.best(name, "as trained") for name in (slstm, lstm)) >= 0.4,
    }  # fmt: skip


def draw(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    accuracies(axes, PAIRS, results, trained=MOST_PAIRS)
    axes.text(MOST_PAIRS - 0.2, 0.05, "pairs in training", ha="right", color=GREY)
    axes.set(xlabel="pairs to remember", ylabel="right values")


COLUMNS = {"as trained": ("right with 8 pairs", ".3f"), "at 16": ("with 16 pairs", ".3f")}
EXPERIMENT = Experiment.of_module(measure, "Associative recall: many keys, many questions", MODELS)

if __name__ == "__main__":
    EXPERIMENT.main()
