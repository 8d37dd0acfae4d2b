"""What a training run shows of itself: its first lines, the loss curve, the figures at the end, and a sample."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import checkpoint, generate, plot, runs
from .engines import Alone
from .errors import CommandError
from .progress import duration
from .training import Layout, Training

if TYPE_CHECKING:
    from .train import Run

ALONE = [1, Alone.kind, 1]  # how checkpoints were made that do not say it


def introduce(run: Run) -> None:
    """Text, model, training and folder."""
    settings, training, text, coding = run.settings, run.training, run.text, run.coding
    learnt = training.corpus.training_bytes
    parameters = sum(p.numel() for p in training.model.parameters())
    print(f"text      {text.name}: {learnt:,} bytes to learn, {len(text) - learnt:,} held out")
    if coding.json is not None:
        per_token = 1 / training.corpus.tokens_per_byte
        print(f"tokens    {len(training.corpus.training):,} of {per_token:.2f} bytes, {coding.vocab_size:,} in the vocabulary")
    print(
        f"model     {settings.model_name()}, width {settings.embedding_dim}, {settings.num_heads} heads,"
        f" {parameters:,} parameters, {settings.dtype} on {run.device}"
    )
    batch = f"{settings.batch_size} x {settings.context_length} {coding.unit}"
    print(f"training  {settings.steps} steps of {batch}, seed {settings.seed}")
    if training.world.size > 1 or training.layout != Layout():
        passes = f", {len(training.passes)} passes a step" * (len(training.passes) > 1)
        print(f"processes {training.world.size}, {training.engine.kind}{passes}" + ", recomputing" * training.layout.recompute)
    print(f"folder    {run.folder}" + (f", resumed at step {training.step}" if run.last_saved >= 0 else ""), flush=True)


def note_change(saved: Mapping[str, Any], training: Training) -> None:
    """Says so when a resumed run is laid out otherwise than before, where its bits may differ."""
    before = saved.get("layout", ALONE)
    if training.world.first and before != training.shares():
        was, now = (f"{size} x {kind}, {passes} passes a step" for size, kind, passes in (before, training.shares()))
        print(f"note: the run was laid out as {was}, now {now}: it goes on equal to rounding, not bit for bit", file=sys.stderr)


def draw(run: Run) -> None:
    """loss.png; a note where it cannot be drawn."""
    settings = run.settings
    title = f"{settings.model_name()}, width {settings.embedding_dim}: {run.text.name}"
    tokens_per_step = settings.batch_size * settings.context_length
    try:
        png = plot.loss_curve(title, run.training.history, run.ngrams, tokens_per_step, run.coding.unit)
        checkpoint.write(run.folder / runs.CURVE, png)
    except CommandError as error:
        print(f"note: {error}", file=sys.stderr)


def figures(run: Run) -> None:
    """Bits per byte beside those of n-grams, and the files."""
    history = run.training.history["held_out"]
    best_step, best = min(history, key=lambda pair: pair[1])
    remark = "" if best_step == run.training.step else f"  (best {best:.3f} at step {int(best_step)})"
    rows = [(f"{order}-gram", f"{bits:.3f}") for order, bits in enumerate(run.ngrams, 1)]
    rows.append((run.settings.model_name(), f"{history[-1][1]:.3f}{remark}"))
    print(f"\nheld-out bits per byte, lower is better ({duration(run.seconds)} of training)")
    for name, figure in rows:
        print(f"  {name:<12} {figure}")
    print("files")
    for name in (checkpoint.LAST, checkpoint.BEST, runs.CURVE):
        if (run.folder / name).exists():
            print(f"  {run.folder / name}")


def sample(run: Run, length: int) -> None:
    """Text of the best model so far, and the command that writes more."""
    print("\nsample", "-" * 72, sep="\n")
    model = generate.load_model(run.folder / checkpoint.BEST, run.device)
    generate.write(model, b"", length, run.device, run.coding, seed=run.settings.seed)
    print("-" * 72)
    print(f"more: python -m xlstm_cuda generate --checkpoint {shlex.quote(str(run.folder))} --prompt 'The with statement'")
