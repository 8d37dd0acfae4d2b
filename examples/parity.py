"""The official parity experiment (experiments/parity_xlstm01.yaml and its siblings in the repository of `xlstm`), import changed.

A string of 2 to 39 bits, one token each; after the last bit the model says whether the number of ones is odd. Only a model that
carries a state from step to step through a nonlinearity, the sLSTM, learns this and keeps it on strings of up to 255 bits.

python examples/parity.py                  xLSTM[0:1], sLSTM blocks: solves it
python examples/parity.py --blocks 1:0     xLSTM[1:0], mLSTM blocks: stays near guessing on longer strings
python examples/parity.py --blocks 1:1     xLSTM[1:1], one of each

Model and task are those of the yaml files. They ask for 20,000 steps on a GPU; this is for a minute or two on a CPU, so it starts
with short strings and lets them grow, up to the yaml's length, whenever the model has learned those it sees.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from dacite import from_dict
from omegaconf import OmegaConf
from torch import Tensor, nn

from xlstm_cuda import xLSTMLMModel, xLSTMLMModelConfig  # was: from xlstm.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

CONFIG = OmegaConf.create("""
training:
  batch_size: 128
  lr: 0.003
  seed: 42
  lr_warmup_steps: 50
  lr_decay_factor: 0.001
  weight_decay: 0.1
  num_steps: 400
  first_max_sequence_length: 5
  learned: 0.1
  amp_precision: bfloat16
  weight_precision: float32
  enable_mixed_precision: false

model:
  num_blocks: 2
  embedding_dim: 64
  mlstm_block:
    mlstm:
      num_heads: 1
  slstm_block:
    slstm:
      num_heads: 1
  slstm_at: [0, 1]
  context_length: ${dataset.context_length}
  vocab_size: ${dataset.vocab_size}

dataset:
  vocab_size: 3
  context_length: 256
  min_sequence_length: 3
  max_sequence_length: 40
  validation:
    min_sequence_length: 40
    max_sequence_length: 256
""")
SLSTM_AT = {"0:1": [0, 1], "1:0": [], "1:1": [1]}
IGNORED = -1


def read_config(blocks: str = "0:1", **training: Any) -> Any:
    """The configuration of xLSTM[blocks], with some training values replaced."""
    return OmegaConf.merge(CONFIG, {"model": {"slstm_at": SLSTM_AT[blocks]}, "training": training})


def strings(count: int, shortest: int, longest: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (count, longest - 1), 0 after a string's end, and labels: 1 (even) or 2 (odd) at its last bit, else IGNORED.

    As officially a sequence of n tokens is n - 1 bits, 1 or 2, and the answer, which the input does not show.
    """
    bits = torch.randint(1, 3, (count, longest - 1), generator=generator)
    last = torch.randint(shortest, longest + 1, (count, 1), generator=generator) - 2
    position = torch.arange(longest - 1)
    tokens = bits.masked_fill(position > last, 0)
    odd = (tokens == 2).sum(1, keepdim=True) % 2
    return tokens, torch.where(position == last, 1 + odd, IGNORED)


def learning_rate(step: int, training: Any) -> float:
    """Linear warm-up, then half a cosine."""
    if step < training.lr_warmup_steps:
        return training.lr * (step + 1) / training.lr_warmup_steps
    progress = (step - training.lr_warmup_steps) / max(1, training.num_steps - training.lr_warmup_steps)
    return training.lr * (training.lr_decay_factor + (1 - training.lr_decay_factor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build(config: Any) -> xLSTMLMModel:
    model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, OmegaConf.to_container(config.model, resolve=True)))
    model.reset_parameters()
    return model.to(getattr(torch, config.training.weight_precision))


def train(model: nn.Module, config: Any, report_every: int = 50) -> list[float]:
    """Trains the model in place; returns the loss of every step."""
    training, dataset = config.training, config.dataset
    generator = torch.Generator().manual_seed(training.seed)
    decay, no_decay = model._create_weight_decay_optim_groups()
    groups = ({"weight_decay": training.weight_decay, "params": decay}, {"weight_decay": 0.0, "params": no_decay})
    optimizer = torch.optim.AdamW(groups, lr=training.lr)
    losses, started = [], time.monotonic()
    longest, running = training.first_max_sequence_length, math.log(2)
    model.train()
    for step in range(training.num_steps):
        if running < training.learned and longest < dataset.max_sequence_length:
            longest, running = min(dataset.max_sequence_length, longest + longest // 3 + 1), math.log(2)
        tokens, labels = strings(training.batch_size, dataset.min_sequence_length, longest, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        with torch.autocast("cpu", getattr(torch, training.amp_precision), enabled=training.enable_mixed_precision):
            outputs = model(tokens)
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        running = 0.9 * running + 0.1 * losses[-1]
        if (step + 1) % report_every == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1:5d}  up to {longest - 1:2d} bits  loss {running:.4f}  {seconds:4.0f} s", flush=True)
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, lengths: Any, count: int = 512, seed: int = 1) -> float:
    """Over new strings; guessing gives a half."""
    tokens, labels = strings(count, lengths.min_sequence_length, lengths.max_sequence_length, torch.Generator().manual_seed(seed))
    asked = labels != IGNORED
    return (model.eval()(tokens).argmax(-1)[asked] == labels[asked]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", choices=SLSTM_AT, default="0:1", help="mLSTM blocks : sLSTM blocks (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--lr", type=float)
    arguments = parser.parse_args()
    given = {"num_steps": arguments.steps, "lr": arguments.lr}
    config = read_config(arguments.blocks, **{name: value for name, value in given.items() if value is not None})
    torch.manual_seed(config.training.seed)
    model = build(config)
    train(model, config)
    for name, lengths in (("training lengths", config.dataset), ("strings of 39 to 255 bits", config.dataset.validation)):
        print(f"xLSTM[{arguments.blocks}]: accuracy {accuracy(model, lengths):.1%} on {name}")


if __name__ == "__main__":
    main()
