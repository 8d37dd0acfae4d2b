"""``python -m xlstm_cuda train``: the training loop as a user sees it."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .. import xLSTMLMModel
from . import checkpoint, generate, ngram, plot, runs
from .device import Device
from .errors import CommandError
from .interrupts import StopRequest
from .progress import Progress, duration
from .settings import Settings
from .text import Text, check_length, load
from .training import Training, check_checkpoint, without_memory

NGRAM_ORDERS = 4


def run(options: argparse.Namespace) -> None:
    """The command."""
    given = {one.name: value for one in fields(Settings) if (value := getattr(options, one.name)) is not None}
    device = Device.choose(options.device, options.backend, options.threads)
    if options.resume:
        folder = Path(options.out) if options.out else runs.latest_folder()
        saved = checkpoint.load(folder / checkpoint.LAST)
        settings, _ = check_checkpoint(saved, f"checkpoint {folder / checkpoint.LAST}")
        check_course(saved, settings, f"checkpoint {folder / checkpoint.LAST}")
        check_agreement(folder, settings, given)
        text = load(options.data or saved["text"]["path"])
        check_same_text(folder, saved["text"], text)
    else:
        settings = Settings(**resolve_all_blocks(given, given.get("num_blocks", Settings.num_blocks)))
        check_memory(without_memory(settings), device)
        folder = Path(options.out) if options.out else runs.next_folder()
        saved = None
        text = load(options.data)
        check_length(text, settings.context_length)

    with runs.Lock(folder):
        if saved is None and (holding := [name for name in (checkpoint.LAST, checkpoint.BEST) if (folder / name).exists()]):
            raise CommandError(
                f"--out: {folder} already holds {holding[0]}; add --resume to continue that run, or name another folder"
            )
        Run(folder, settings, text, device, saved).train(options.checkpoint_every, options.sample_length)


def resolve_all_blocks(given: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    """The given settings with ``slstm_at="all"`` spelt out."""
    every = {"slstm_at": tuple(range(num_blocks))} if given.get("slstm_at") == "all" else {}
    return {**given, **every}


def check_memory(model: xLSTMLMModel, device: Device) -> None:
    """CommandError for a model whose training cannot fit: weight, gradient and two moments, 16 bytes for each parameter."""
    needed, present = 16 * sum(p.numel() for p in model.parameters()), device.memory()
    if needed > present:
        raise CommandError(
            f"out of memory: this model takes {needed / 2**30:,.0f} GiB to train, {device.device} has {present / 2**30:,.0f} GiB;"
            " a smaller --embedding-dim or --num-blocks needs less"
        )


def check_course(saved: Mapping[str, Any], settings: Settings, where: str) -> None:
    """CommandError unless a checkpoint's account of the run so far has the form that `Run` writes."""
    numbers = (int, float)
    text, history, ngrams = saved.get("text"), saved.get("history"), saved.get("ngrams")
    forms = {
        "step": type(saved.get("step")) is int and 0 <= saved["step"] <= settings.steps,
        "seconds": isinstance(saved.get("seconds"), numbers) and math.isfinite(saved["seconds"]),
        "ngrams": isinstance(ngrams, list) and all(isinstance(bits, numbers) for bits in ngrams),
        "text": isinstance(text, Mapping)
        and isinstance(text.get("path", ...), (str, type(None)))
        and all(isinstance(text.get(name), kind) for name, kind in (("name", str), ("sha256", str), ("bytes", int))),
        "history": isinstance(history, Mapping)
        and all(_are_points(history.get(name)) for name in ("training", "held_out")),
        "optimizer": isinstance(saved.get("optimizer"), Mapping),
    }  # fmt: skip
    for name, fits in forms.items():
        if not fits:
            raise CommandError(f"{where} is not one of a run: its {name!r} has another form")


def _are_points(points: object) -> bool:
    """Whether this is a list of [step, bits per byte]."""
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(value, (int, float)) for value in point)
        for point in points
    )


def check_agreement(folder: Path, settings: Settings, given: Mapping[str, Any]) -> None:
    """CommandError when a resumed run is given a setting that is not its own."""
    for name, value in resolve_all_blocks(given, settings.num_blocks).items():
        if value != (expected := getattr(settings, name)):
            option = "--" + name.replace("_", "-")
            raise CommandError(
                f"{option}: got {_shown(value)}, expected {_shown(expected)}, the setting of the run in {folder}"
                " (a resumed run keeps its settings; leave the option out, or start another run without --resume)"
            )


def check_same_text(folder: Path, saved: Mapping[str, Any], text: Text) -> None:
    """CommandError when a resumed run is given another text."""
    if text.sha256 != saved["sha256"]:
        raise CommandError(
            f"--data: got {text.name} ({len(text.content)} bytes, sha256 {text.sha256[:12]}...), expected the text of the run in"
            f" {folder} ({saved['name']}, {saved['bytes']} bytes, sha256 {saved['sha256'][:12]}...)"
        )


def _shown(value: Any) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


class Run:
    """One run folder: the training in it, its checkpoints, its curve and its report."""

    def __init__(self, folder: Path, settings: Settings, text: Text, device: Device, saved: dict[str, Any] | None) -> None:
        self.folder = folder
        self.settings = settings
        self.text = text
        self.device = device
        training, held_out = text.split()
        self.training = Training(settings, training, held_out, device)
        self.seconds = 0.0
        self.last_saved = -1
        if saved is None:
            scored = self.training.held_out.numpy().tobytes()
            self.ngrams = ngram.bits_per_byte(training.numpy().tobytes(), scored, NGRAM_ORDERS)
        else:
            try:
                self.training.restore(saved)
            except Exception as error:  # what a foreign optimizer state or random state may raise is not ours to list
                message = " ".join(str(error).split())
                raise CommandError(f"checkpoint {folder / checkpoint.LAST} does not fit its settings: {message}") from None
            self.ngrams, self.seconds, self.last_saved = saved["ngrams"], saved["seconds"], saved["step"]
        self._introduce(len(training))

    def train(self, checkpoint_every: int, sample_length: int) -> None:
        """Trains to the end, then draws, reports and writes a sample."""
        self._loop(checkpoint_every)
        self._draw()
        self._report()
        if sample_length:
            self._sample(sample_length)

    def _loop(self, checkpoint_every: int) -> None:
        training, settings = self.training, self.settings
        if self.last_saved < 0:
            self._save()  # an unwritable folder or a full disk shows now, and from here on there is always something to resume
        progress = Progress(settings.steps, training.step, settings.batch_size * settings.context_length)
        started = time.monotonic() - self.seconds
        with StopRequest() as stop, contextlib.closing(progress):
            while not training.finished:
                if stop.requested:
                    progress.close()
                    self._save()
                    self._draw()
                    raise CommandError(f"stopped at step {training.step} of {settings.steps}; {self._how_to_resume()}")
                with self.device.refusals():
                    training.train_step()
                if progress.due() or training.finished:
                    progress.update(training.step, training.last_loss)
                validate = training.step % settings.eval_every == 0 or training.finished
                if not validate and training.step % checkpoint_every:
                    continue
                with progress.paused():
                    self._check_finite()
                    if validate:
                        progress.line(f"step {training.step}: {training.validate():.3f} bits/byte held out")
                    self.seconds = time.monotonic() - started
                    self._save(best=validate and training.is_best())

    def _check_finite(self) -> None:
        if not self.training.is_finite():
            raise CommandError(
                f"the training diverged: a loss or weight is not finite at step {self.training.step}. Start again with a lower"
                f" --learning-rate than {self.settings.learning_rate:g}; the checkpoint of step {self.last_saved} is intact"
            )

    def _save(self, best: bool = False) -> None:
        content = checkpoint.serialize(
            {
                **self.training.state(),
                "text": {
                    "path": None if self.text.is_default else os.path.abspath(self.text.name),
                    "name": self.text.name,
                    "sha256": self.text.sha256,
                    "bytes": len(self.text.content),
                },
                "ngrams": self.ngrams,
                "seconds": self.seconds,
            }
        )
        try:
            if best:  # before last.pt: a kill in between repeats this validation, and writes the same best.pt again
                checkpoint.write(self.folder / checkpoint.BEST, content)
            checkpoint.write(self.folder / checkpoint.LAST, content)
        except checkpoint.WriteError as error:
            if self.last_saved < 0:
                raise
            raise CommandError(f"{error}; the checkpoint of step {self.last_saved} is intact, {self._how_to_resume()}") from None
        self.last_saved = self.training.step

    def _how_to_resume(self) -> str:
        return f"continue with: python -m xlstm_cuda train --resume --out {shlex.quote(str(self.folder))}"

    def _introduce(self, training_bytes: int) -> None:
        settings = self.settings
        parameters = sum(p.numel() for p in self.training.model.parameters())
        print(
            f"text      {self.text.name}: {training_bytes:,} bytes to learn, {len(self.text.content) - training_bytes:,} held out"
        )
        print(
            f"model     {settings.model_name()}, width {settings.embedding_dim}, {settings.num_heads} heads,"
            f" {parameters:,} parameters, {settings.dtype} on {self.device}"
        )
        print(
            f"training  {settings.steps} steps of {settings.batch_size} x {settings.context_length} bytes, seed {settings.seed}"
        )
        print(
            f"folder    {self.folder}" + (f", resumed at step {self.training.step}" if self.last_saved >= 0 else ""), flush=True
        )

    def _draw(self) -> None:
        settings = self.settings
        title = f"{settings.model_name()}, width {settings.embedding_dim}: {self.text.name}"
        try:
            png = plot.loss_curve(title, self.training.history, self.ngrams, settings.batch_size * settings.context_length)
            checkpoint.write(self.folder / runs.CURVE, png)
        except CommandError as error:
            print(f"note: {error}", file=sys.stderr)

    def _report(self) -> None:
        history = self.training.history["held_out"]
        best_step, best = min(history, key=lambda pair: pair[1])
        remark = "" if best_step == self.training.step else f"  (best {best:.3f} at step {int(best_step)})"
        rows = [(f"{order}-gram", f"{bits:.3f}") for order, bits in enumerate(self.ngrams, 1)]
        rows.append((self.settings.model_name(), f"{history[-1][1]:.3f}{remark}"))
        print(f"\nheld-out bits per byte, lower is better ({duration(self.seconds)} of training)")
        for name, figure in rows:
            print(f"  {name:<12} {figure}")
        print("files")
        for name in (checkpoint.LAST, checkpoint.BEST, runs.CURVE):
            if (self.folder / name).exists():
                print(f"  {self.folder / name}")

    def _sample(self, length: int) -> None:
        print("\nsample", "-" * 72, sep="\n")
        model = generate.load_model(self.folder / checkpoint.BEST, self.device)
        generate.write(model, b"", length, self.device, seed=self.settings.seed)
        print("-" * 72)
        print(f"more: python -m xlstm_cuda generate --checkpoint {shlex.quote(str(self.folder))} --prompt 'The with statement'")
