"""``python -m xlstm_cuda train``: the training loop as a user sees it, in one process or in those of torchrun."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import xLSTMLMModel
from . import checkpoint, distributed, ngram, report, resume, runs, tokens
from .device import Device
from .distributed import World
from .errors import CommandError, SaidElsewhere, UsageError
from .interrupts import StopRequest
from .progress import Progress
from .settings import Settings
from .text import Text, check_corpus, check_length, load
from .tokens import Coding
from .training import Layout, Training, without_memory

NGRAM_ORDERS = 4


def run(options: argparse.Namespace) -> None:
    """The command."""
    with distributed.joined() as world, contextlib.ExitStack() as held:
        prepare(options, world, held).train(options.checkpoint_every, options.sample_length)


def prepare(options: argparse.Namespace, world: World, held: contextlib.ExitStack) -> Run:
    """The run that is asked for, its folder locked until ``held`` closes; all that can be wrong with it has been checked."""
    given = {one.name: value for one in fields(Settings) if (value := getattr(options, one.name)) is not None}
    if options.shard and not world.launched:
        raise UsageError("--shard: expected under torchrun: torchrun --nproc-per-node 2 -m xlstm_cuda train --shard ...")
    device = world.own(Device.choose(options.device, options.backend, options.threads), options.device)
    layout = Layout(options.shard, options.accumulate, options.recompute)
    saved = None
    if options.resume or resume.goes_on(options.out, world):
        folder, saved = resume.saved_run(options.out, world)
        where = f"checkpoint {folder / checkpoint.LAST}"
        settings = Settings.from_checkpoint(saved["settings"], where)
        resume.check_agreement(folder, settings, given)
        text = load(options.data) if options.data else replace(load(saved["text"]["path"]), name=saved["text"]["name"])
        coding = tokens.of_checkpoint(saved, where)
        resume.check_same_tokenizer(folder, coding, options.tokenizer)
        layout.passes(settings.batch_size, world)
    else:
        settings = Settings(**resume.resolve_all_blocks(given, given.get("num_blocks", Settings.num_blocks)))
        coding = tokens.load(options.tokenizer)
        check_memory(without_memory(settings, coding.vocab_size), device, layout, world)
        layout.passes(settings.batch_size, world)
        folder = world.tell(lambda: Path(options.out) if options.out else runs.next_folder())
        text = load(options.data)
        check_length(text, settings.context_length)
    if world.size > 1:
        world.agree(_facts(settings, layout, text, coding, world))
    text = replace(text, known_sha256=world.tell(lambda: text.sha256))
    if saved is not None:
        resume.check_same_text(folder, saved["text"], text)
    world.tell(lambda: _take(folder, held, fresh=saved is None))
    corpus = tokens.corpus(text, coding, settings.eval_bytes, folder, world.tell)
    check_corpus(corpus, coding, settings.context_length)
    return Run(folder, text, coding, Training(settings, corpus, device, coding.vocab_size, layout, world), saved)


def _facts(settings: Settings, layout: Layout, text: Text, coding: Coding, world: World) -> dict[str, Any]:
    """What all processes must have in common. One on each machine reads the whole text for its digest."""
    chosen = {**asdict(settings), **asdict(layout)}
    options = {"--" + name.replace("_", "-"): resume.shown(value) for name, value in chosen.items()}
    tokenizer = None if coding.json is None else hashlib.sha256(coding.json.encode()).hexdigest()[:12]
    return {
        **options,
        "the length of --data": len(text),
        "the sha256 of --data": text.sha256[:12] if world.local_rank == 0 else None,
        "the sha256 of --tokenizer": tokenizer or "none",
        "PyTorch": torch.__version__,
        "the code of xlstm_cuda": distributed.code_digest(),
    }


def _take(folder: Path, held: contextlib.ExitStack, fresh: bool) -> None:
    """Locks the folder. CommandError when a fresh run would write over another."""
    held.enter_context(runs.Lock(folder))
    holding = [name for name in (checkpoint.LAST, checkpoint.BEST) if (folder / name).exists()]
    if fresh and holding:
        raise CommandError(
            f"--out: {folder} already holds {holding[0]}; add --resume to continue that run, or name another folder"
        )


def check_memory(model: xLSTMLMModel, device: Device, layout: Layout, world: World) -> None:
    """CommandError for a model whose training cannot fit: weight, gradient and two moments, 16 bytes for each parameter."""
    needed, present = 16 * sum(p.numel() for p in model.parameters()), device.memory()
    if layout.shard:
        needed //= world.size
    if device.device.type == "cpu":
        needed *= world.local_size  # the processes of a machine share its memory
    if needed > present:
        raise CommandError(
            f"out of memory: this model takes {needed / 2**30:,.0f} GiB to train, {device.device} has {present / 2**30:,.0f} GiB;"
            " a smaller --embedding-dim or --num-blocks needs less"
        )


class Run:
    """One run folder: the training in it, its checkpoints, its curve and its report.

    Every process has one; the first writes and shows.
    """

    def __init__(self, folder: Path, text: Text, coding: Coding, training: Training, saved: dict[str, Any] | None) -> None:
        self.folder = folder
        self.text = text
        self.coding = coding
        self.training = training
        self.settings = training.settings
        self.device = training.device
        self.world = training.world
        self.seconds = 0.0
        self.last_saved = -1
        if saved is None:
            self.ngrams = self.world.tell(self._count_ngrams)
        else:
            try:
                training.restore(saved)
            except SaidElsewhere:
                raise
            except Exception as error:  # what a foreign optimizer state or random state may raise is not ours to list
                message = " ".join(str(error).split())
                raise CommandError(f"checkpoint {folder / checkpoint.LAST} does not fit its settings: {message}") from None
            self.ngrams, self.seconds, self.last_saved = saved["ngrams"], saved["seconds"], saved["step"]
            report.note_change(saved, training)
        report.introduce(self)

    def train(self, checkpoint_every: int, sample_length: int) -> None:
        """Trains to the end, then draws, reports and writes a sample."""
        if self.last_saved < 0:
            self._save()  # an unwritable folder or a full disk shows now, and from here on there is always something to resume
        with StopRequest(to_the_end=self.world.launched) as stop, self._unless_another_ends():
            self._loop(checkpoint_every, stop)
        if self.world.first:
            report.draw(self)
            report.figures(self)
            if sample_length:
                report.sample(self, sample_length)

    def _loop(self, checkpoint_every: int, stop: StopRequest) -> None:
        training, settings = self.training, self.settings
        tokens_per_step = settings.batch_size * settings.context_length
        progress = Progress(settings.steps, training.step, tokens_per_step, training.corpus.tokens_per_byte)
        started = time.monotonic() - self.seconds
        with contextlib.closing(progress):
            while not training.finished:
                if self.world.any(stop.requested):
                    progress.close()
                    self._save()
                    if self.world.first:
                        report.draw(self)
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

    @contextlib.contextmanager
    def _unless_another_ends(self) -> Iterator[None]:
        """Says what is left when another process of the run has ended, which shows in the next exchange with it."""
        try:
            yield
        except RuntimeError as error:
            if not self.world.has_lost_another(error):
                raise
            raise CommandError(
                f"another process of this run has ended, after step {self.training.step};"
                f" the checkpoint of step {self.last_saved} is intact, {self._how_to_resume()}"
            ) from None

    def _check_finite(self) -> None:
        if not self.training.is_finite():
            raise CommandError(
                f"the training diverged: a loss or weight is not finite at step {self.training.step}. Start again with a lower"
                f" --learning-rate than {self.settings.learning_rate:g}; the checkpoint of step {self.last_saved} is intact"
            )

    def _count_ngrams(self) -> list[float]:
        learnt, held_out = self.text.split()
        read, scored = learnt[-ngram.FITTED_BYTES :], held_out[: self.settings.eval_bytes]
        return ngram.bits_per_byte(read.numpy().tobytes(), scored.numpy().tobytes(), NGRAM_ORDERS)

    def _save(self, best: bool = False) -> None:
        state = self.training.state()
        self.world.tell(lambda: self._write(state, best))
        self.last_saved = self.training.step

    def _write(self, state: dict[str, Any], best: bool) -> None:
        paths = [os.path.abspath(path) for path in self.text.paths]
        content = checkpoint.serialize(
            {
                **state,
                "text": {
                    "path": (paths[0] if len(paths) == 1 else paths) if paths else None,
                    "name": self.text.name,
                    "sha256": self.text.sha256,
                    "bytes": len(self.text),
                },
                "tokenizer": self.coding.json,
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

    def _how_to_resume(self) -> str:
        layout, world = self.training.layout, self.world
        launcher = f"torchrun --nproc-per-node {world.local_size}"
        launcher += f" --nnodes {world.size // world.local_size} ..." * (world.size > world.local_size)
        options = " --shard" * layout.shard + f" --accumulate {layout.accumulate}" * (layout.accumulate > 1)
        options += " --recompute" * layout.recompute
        command = f"{launcher if world.launched else 'python'} -m xlstm_cuda train --resume"
        return f"continue with: {command} --out {shlex.quote(str(self.folder))}{options}"
