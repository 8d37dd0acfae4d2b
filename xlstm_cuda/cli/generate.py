"""``python -m xlstm_cuda generate``: continues prompts, token by token, from recurrent states of constant size.

One prompt: the prompt and its continuation, as they come. Several (`--prompt` more than once, or `--batch-file`): JSON Lines, one
object for each prompt in their order, ``{"prompt": ..., "text": ...}``, where text is what the prompt alone would print.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import generation, xLSTMLMModel
from . import checkpoint, runs, tokens
from .device import Device
from .errors import CommandError, UsageError
from .tokens import Coding
from .training import check_checkpoint

START = b"\n"  # what an empty prompt continues: the model predicts the first byte of a line
TEMPERATURE = 0.8
ROWS = 64  # prompts that are continued side by side


def run(options: argparse.Namespace) -> None:
    """The command."""
    device = Device.choose(options.device, options.backend, options.threads)
    path = _checkpoint_path(options.checkpoint)
    model, coding = load_model(path, device), load_coding(path)
    seed = secrets.randbits(62) if options.seed is None else options.seed
    sampling = dict(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=seed)
    given = options.prompt or []
    if given.count("-") > 1:
        raise UsageError("--prompt: got - more than once, expected it once: standard input can be read once")
    prompts = [_standard_input() if prompt == "-" else os.fsencode(prompt) for prompt in given]
    if options.batch_file is None and len(prompts) <= 1:
        write(model, prompts[0] if prompts else b"", options.length, device, coding, **sampling)
    else:
        lines = [] if options.batch_file is None else _lines(options.batch_file)
        write_lines(model, prompts + lines, options.length, device, coding, **sampling)


def _lines(path: str) -> list[bytes]:
    """The lines of a file, without their ends."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise CommandError(f"--batch-file: there is no file {path}") from None
    except IsADirectoryError:
        raise CommandError(f"--batch-file: {path} is a folder, expected a text file with one prompt a line") from None
    except OSError as error:
        raise CommandError(f"--batch-file: cannot read {path}: {error.strerror}") from None
    if not content:
        raise CommandError(f"--batch-file: {path} is empty, expected one prompt a line")
    return [line.removesuffix(b"\r") for line in content.removesuffix(b"\n").split(b"\n")]


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
    """How the text of the model in a training checkpoint becomes tokens. CommandError as in `load_model`."""
    return tokens.of_checkpoint(checkpoint.load(path), f"checkpoint {path}")


def stream(
    model: xLSTMLMModel, prompts: Sequence[Sequence[int]], length: int, device: Device, **sampling: Any
) -> Iterator[tuple[int, int]]:
    """(row, token) of ``length`` tokens that continue prompts of at least one token; ``sampling`` as in `generation.generate`.

    Every token costs one recurrent step on a state of constant size.
    """
    rows = [torch.tensor(list(prompt), dtype=torch.int64, device=device.device) for prompt in prompts]
    with device.refusals():
        run = generation.stream(model, rows, max_new_tokens=length, backend=device.backend, **sampling)
    return _computed(run, device)


@torch.inference_mode()
def _computed(run: Iterator[tuple[int, int]], device: Device) -> Iterator[tuple[int, int]]:
    try:
        with device.refusals():
            first = next(run, None)
        if first is not None:
            yield first
        yield from run
    except generation.LogitsError as error:
        raise CommandError(str(error)) from error


def _continued(prompt: list[int], coding: Coding) -> list[int]:
    """The tokens that the model reads for this prompt."""
    return prompt or coding.encode(START) or [0]


def write(
    model: xLSTMLMModel,
    prompt: bytes,
    length: int,
    device: Device,
    coding: Coding = tokens.BYTES,
    temperature: float = TEMPERATURE,
    **sampling: Any,
) -> None:
    """Prints the prompt and its continuation as they come. Bytes that are not UTF-8 become U+FFFD, never half a character."""
    decoder = coding.decoder()
    read = coding.encode(prompt)
    try:
        _print("".join(map(decoder.write, read)))
        for _, token in stream(model, [_continued(read, coding)], length, device, temperature=temperature, **sampling):
            _print(decoder.write(token))
        _print(decoder.end())
    finally:
        _print("\n")


def write_lines(
    model: xLSTMLMModel, prompts: Sequence[bytes], length: int, device: Device, coding: Coding, seed: int, **sampling: Any
) -> None:
    """Prints a line of JSON for every prompt. The prompt at place p has the seed ``seed`` + p, as if it were alone."""
    for start in range(0, len(prompts), ROWS):
        group = prompts[start : start + ROWS]
        texts = [coding.encode(prompt) for prompt in group]
        read = [list(_continued(text, coding)) for text in texts]
        for row, token in stream(model, read, length, device, seed=seed + start, **sampling):
            texts[row].append(token)
        for prompt, text in zip(group, texts):
            decoder = coding.decoder()
            written = "".join(map(decoder.write, text)) + decoder.end()
            _print(json.dumps({"prompt": prompt.decode(errors="replace"), "text": written}) + "\n")


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
