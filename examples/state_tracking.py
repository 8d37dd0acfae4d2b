"""State tracking: after every element of a random word over the group S3, say which element the product so far is.

The answer depends on every token and on their order, so it needs a state that each token changes nonlinearly: sLSTM and
nn.LSTM have one, the mLSTM (parallel over the sequence) and the Transformer do not. Trained on words that grow to 32 elements,
tested on words of up to 1024.

python -m examples.state_tracking             one seed of all four, half a minute of CPU time
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import xlstm_cuda
from bench.transformer import TransformerLM

from .common import Experiment, Layered, Results, parameters, train
from .drawing import GREY, accuracies

ELEMENTS = list(itertools.permutations(range(3)))
PRODUCT = torch.tensor([[ELEMENTS.index(tuple(a[b[i]] for i in range(3))) for b in ELEMENTS] for a in ELEMENTS])
WIDTH, BATCH, STEPS, LONGEST = 64, 32, 600, 32
LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "sLSTM": lambda: Layered(6, xlstm_cuda.sLSTM(WIDTH, WIDTH, batch_first=True, num_heads=1), 6),
    "nn.LSTM": lambda: Layered(6, nn.LSTM(WIDTH, WIDTH, batch_first=True), 6),
    "mLSTM, 2 layers": lambda: Layered(6, xlstm_cuda.mLSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, num_heads=1), 6),
    "Transformer, 2 blocks": lambda: TransformerLM(6, WIDTH, 4, 2),
}


def words(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random elements (count, length), and the product of all up to each place."""
    elements = torch.randint(6, (count, length), generator=generator)
    products = [elements[:, 0]]
    for t in range(1, length):
        products.append(PRODUCT[elements[:, t], products[-1]])
    return elements, torch.stack(products, 1)


FINDING = "Memory that mixes tracks a state 32 times longer than it was trained on"
SETTING = f"Product in the group S3; {STEPS} steps of {BATCH} words for everyone; band: lowest to highest seed; dotted: guessing"


def measure(contender: str, seed: int, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    model, generator = MODELS[contender](), torch.Generator().manual_seed(seed)
    steps = 300 if quick else STEPS

    def loss(step: int) -> Tensor:
        elements, products = words(BATCH, min(LONGEST, 3 + int(LONGEST * step / (0.6 * steps))), generator)
        return cross_entropy(model(elements).flatten(0, 1), products.flatten())

    train(model, loss, steps, 1e-3 if "Transformer" in contender else 3e-3, report)
    lengths = [length for length in LENGTHS if not quick or length <= 256]
    return {"parameters": parameters(model), **accuracy(model, lengths, 32 if quick else 128)}


@torch.no_grad()
def accuracy(model: nn.Module, lengths: Sequence[int], count: int) -> dict[str, Any]:
    """Of new words, at each length (the last quarter of the places up to it); guessing gives a sixth."""
    elements, products = words(count, lengths[-1], torch.Generator().manual_seed(10_000))
    right = (model(elements).argmax(-1) == products).float().mean(0)
    shares = [right[length - max(1, length // 4) : length].mean().item() for length in lengths]
    return {"accuracy": shares, "at 32": shares[lengths.index(32)], "at the end": shares[-1]}


def claims(results: Results) -> dict[str, bool]:
    mixing = [results.worst(name, "at the end") for name in ("sLSTM", "nn.LSTM")]
    others = [results.best(name, "at the end") for name in MODELS if name not in ("sLSTM", "nn.LSTM")]
    return {
        "The sLSTM is right at 99 % or more of the places of the longest words, with every seed": mixing[0] >= 0.99,
        "nn.LSTM is as good: the two are within one percentage point": abs(mixing[0] - mixing[1]) <= 0.01,
        "mLSTM and Transformer, trained alike, are below 30 % there with every seed (guessing: 17 %)": max(others) < 0.30,
    }


def draw(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    lengths = LENGTHS[: len(results.of(results.contenders[0], "accuracy")[0])]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    accuracies(axes, lengths, results, trained=LONGEST)
    axes.text(LONGEST * 0.93, 0.62, "lengths\nin training", ha="right", color=GREY)
    axes.axhline(1 / 6, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="length of the word", ylabel="right answers")


COLUMNS = {"at 32": ("right at length 32", ".3f"), "at the end": ("at 1024", ".3f")}
EXPERIMENT = Experiment.of_module(measure, "State tracking: products in the group S3", MODELS, seeds=5)

if __name__ == "__main__":
    EXPERIMENT.main()
