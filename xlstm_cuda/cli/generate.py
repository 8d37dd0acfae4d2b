"""``python -m xlstm_cuda generate``: continues a prompt, byte by byte, from a recurrent state of constant size."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import xLSTMLMModel
from . import checkpoint, runs, tokens
from .device import Device
from .errors import CommandError
from .tokens import Coding
from .training import check_checkpoint

START = b"\n"  # what an empty prompt continues: the model predicts the first byte of a line
PIECE = 1024  # bytes of the prompt per parallel pass, which takes some 15 KB of memory a byte


def run(options: argparse.Namespace) -> None:
    """The command."""
    device = Device.choose(options.device, options.backend, options.threads)
    path = _checkpoint_path(options.checkpoint)
    model, coding = load_model(path, device), load_coding(path)
    prompt = _standard_input() if options.prompt == "-" else os.fsencode(options.prompt)
    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    write(model, prompt, options.length, sampler, device, coding)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise CommandError("--prompt: standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise CommandError(f"--prompt: cannot read standard input: {error.strerror}") from None


def _checkpoint_path(given: str | None) -> Path:
    path = Path(given) if given is not None else runs.latest_folder()
    if os.path.isdir(path):
        best = path / checkpoint.BEST
        return best if best.exists() else path / checkpoint.LAST
    return path


def load_model(path: Path, device: Device) -> xLSTMLMModel:
    """The model in a training checkpoint.

    Raises:
        CommandError: no checkpoint there, or one that does not fit.
    """
    content = checkpoint.load(path)
    _, model = check_checkpoint(content, f"checkpoint {path}")
    model.to_empty(device=device.device)
    model.load_state_dict(content["model"])
    return model.eval()


def load_coding(path: Path) -> Coding:
    """How the text of the model in a training checkpoint becomes tokens. CommandError as of `load_model`."""
    return tokens.of_checkpoint(checkpoint.load(path), f"checkpoint {path}")


@dataclass
class Sampler:
    """Picks the next byte from the logits.

    Args:
        temperature: divides the logits; 0 picks the likeliest.
        top_k: only the k likeliest stay.
        top_p: only the likeliest stay, as many as it takes to reach this probability.
        seed: None draws a seed from the system.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator()
        if self.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.seed)

    def pick(self, logits: Tensor) -> int:
        """logits (V,) on any device -> index."""
        logits = logits.to("cpu", torch.float64)
        if self.temperature == 0:
            return int(logits.argmax())
        logits, tokens = logits.sort(descending=True, stable=True)
        p = ((logits - logits[0]) / self.temperature)[: self.top_k].softmax(0)  # no overflow at any temperature
        if self.top_p is not None:
            p = p.masked_fill(p.cumsum(0) - p >= self.top_p, 0)
        return int(tokens[torch.multinomial(p, 1, generator=self._generator)])


def stream(model: xLSTMLMModel, prompt: Sequence[int], length: int, sampler: Sampler, device: Device) -> Iterator[int]:
    """``length`` tokens that continue the prompt.

    Every token costs one recurrent step on a state of constant size.
    """
    with device.refusals():
        logits, state = read_prompt(model, prompt or START, device)
    for written in range(length):
        token = sampler.pick(logits)
        yield token
        if written + 1 < length:
            logits, state = _step(model, torch.tensor([[token]], device=device.device), state, device.backend)


@torch.inference_mode()
def read_prompt(model: xLSTMLMModel, prompt: Sequence[int], device: Device) -> tuple[Tensor, Any]:
    """The logits (V,) after the prompt, of at least one token, and the state.

    Parallel passes over one piece after the other, so that the memory does not depend on the length of the prompt.
    """
    logits, state = torch.empty(0), None
    for start in range(0, len(prompt), PIECE):
        piece = torch.tensor([list(prompt[start : start + PIECE])], device=device.device)
        logits, state = model(piece, state, return_last_state=True, backend=device.backend)
    return logits[0, -1], state


@torch.inference_mode()
def _step(model: xLSTMLMModel, token: Tensor, state: Any, backend: str | None) -> tuple[Tensor, Any]:
    logits, state = model.step(token, state, backend=backend)
    return logits[0, -1], state


def write(
    model: xLSTMLMModel, prompt: bytes, length: int, sampler: Sampler, device: Device, coding: Coding = tokens.BYTES
) -> None:
    """Prints the prompt and its continuation as they come. Bytes that are not UTF-8 become U+FFFD, never half a character."""
    decoder = coding.decoder()
    read = coding.encode(prompt)
    try:
        _print("".join(map(decoder.write, read)))
        for token in stream(model, read or coding.encode(START) or [0], length, sampler, device):
            _print(decoder.write(token))
        _print(decoder.end())
    finally:
        _print("\n")


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
