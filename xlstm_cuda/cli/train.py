"""``python -m xlstm_cuda train``: the training loop as a user sees it, in one process or in those of torchrun."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import xLSTMLMModel
from . import checkpoint, distributed, ngram, report, runs, tokens
from .device import Device
from .distributed import World
from .errors import CommandError, SaidElsewhere, UsageError
from .interrupts import StopRequest
from .progress import Progress
from .settings import Settings
from .text import Text, check_corpus, check_length, load
from .tokens import Coding
from .training import Layout, Training, check_checkpoint, without_memory

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
    if options.resume:
        folder, saved = _saved_run(options.out, world)
        where = f"checkpoint {folder / checkpoint.LAST}"
        settings = Settings.from_checkpoint(saved["settings"], where)
        check_agreement(folder, settings, given)
        text = load(options.data) if options.data else replace(load(saved["text"]["path"]), name=saved["text"]["name"])
        check_same_text(folder, saved["text"], text)
        coding = tokens.of_checkpoint(saved, where)
        check_same_tokenizer(folder, coding, options.tokenizer)
        layout.passes(settings.batch_size, world)
    else:
        settings = Settings(**resolve_all_blocks(given, given.get("num_blocks", Settings.num_blocks)))
        coding = tokens.load(options.tokenizer)
        check_memory(without_memory(settings, coding.vocab_size), device, layout, world)
        layout.passes(settings.batch_size, world)
        folder = world.tell(lambda: Path(options.out) if options.out else runs.next_folder())
        text = load(options.data)
        check_length(text, settings.context_length)
    if world.size > 1:
        world.agree(_facts(settings, layout, text, coding, world))
    world.tell(lambda: _take(folder, held, fresh=saved is None))
    corpus = tokens.corpus(text, coding, settings.eval_bytes, folder, world.tell)
    check_corpus(corpus, coding, settings.context_length)
    return Run(folder, text, coding, Training(settings, corpus, device, coding.vocab_size, layout, world), saved)


def _saved_run(out: str | None, world: World) -> tuple[Path, dict[str, Any]]:
    """Folder and checkpoint of the run to resume; weights and moments in the first process alone."""
    whole: dict[str, Any] = {}

    def read() -> tuple[Path, dict[str, Any]]:
        folder = Path(out) if out else runs.latest_folder()
        whole.update(checkpoint.load(folder / checkpoint.LAST))
        where = f"checkpoint {folder / checkpoint.LAST}"
        settings, _ = check_checkpoint(whole, where)
        check_course(whole, settings, where)
        return folder, {name: value for name, value in whole.items() if name not in ("model", "optimizer")}

    folder, course = world.tell(read)
    return folder, whole or course


def _facts(settings: Settings, layout: Layout, text: Text, coding: Coding, world: World) -> dict[str, Any]:
    """What all processes must have in common. One on each machine reads the whole text for its digest."""
    options = {"--" + name.replace("_", "-"): _shown(value) for name, value in {**asdict(settings), **asdict(layout)}.items()}
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


def resolve_all_blocks(given: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    """The given settings with ``slstm_at="all"`` spelt out."""
    every = {"slstm_at": tuple(range(num_blocks))} if given.get("slstm_at") == "all" else {}
    return {**given, **every}


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


def check_course(saved: Mapping[str, Any], settings: Settings, where: str) -> None:
    """CommandError unless a checkpoint's account of the run so far has the form that `Run` writes."""
    numbers = (int, float)
    text, history, ngrams = saved.get("text"), saved.get("history"), saved.get("ngrams")
    forms = {
        "step": type(saved.get("step")) is int and 0 <= saved["step"] <= settings.steps,
        "seconds": isinstance(saved.get("seconds"), numbers) and math.isfinite(saved["seconds"]),
        "ngrams": isinstance(ngrams, list) and all(isinstance(bits, numbers) for bits in ngrams),
        "text": isinstance(text, Mapping)
        and _are_paths(text.get("path", ...))
        and all(isinstance(text.get(name), kind) for name, kind in (("name", str), ("sha256", str), ("bytes", int))),
        "history": isinstance(history, Mapping)
        and all(_are_points(history.get(name)) for name in ("training", "held_out")),
        "optimizer": isinstance(saved.get("optimizer"), Mapping),
        "random_of_others": isinstance(saved.get("random_of_others", []), list),
    }  # fmt: skip
    for name, fits in forms.items():
        if not fits:
            raise CommandError(f"{where} is not one of a run: its {name!r} has another form")


def _are_paths(paths: object) -> bool:
    """Whether this is what `load` takes."""
    several = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
    return paths is None or isinstance(paths, str) or bool(several)


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
            f"--data: got {text.name} ({len(text)} bytes, sha256 {text.sha256[:12]}...), expected the text of the run in"
            f" {folder} ({saved['name']}, {saved['bytes']} bytes, sha256 {saved['sha256'][:12]}...)"
        )


def check_same_tokenizer(folder: Path, coding: Coding, given: str | None) -> None:
    """CommandError when a resumed run is given another tokenizer."""
    if given is not None and tokens.load(given).json != coding.json:
        own = "bytes, without a tokenizer" if coding.json is None else "the tokenizer in its checkpoint, which need not be given"
        raise CommandError(f"--tokenizer: got {given}, expected that of the run in {folder}: {own}")


def _shown(value: Any) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


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
