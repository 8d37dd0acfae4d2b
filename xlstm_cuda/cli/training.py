"""The state of a training run and what moves it forward: one step, one validation, saving and restoring all of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import xLSTMLMModel
from . import engines, tokens
from .device import Device
from .distributed import ALONE, World
from .errors import CommandError, UsageError
from .settings import VOCAB_SIZE, Settings, option_names
from .text import Corpus, Windows

VALIDATION_ROWS = 16
VALIDATION_CHUNK = 256
HISTORY_POINTS = 1000


@dataclass(frozen=True)
class Layout:
    """How a run is spread over processes and passes, which decides what fits and how sums are rounded, not what is learnt.

    A step's sequences are shared out evenly over the processes, each of which reads its own in ``accumulate`` passes. With
    ``shard`` a process holds a part of the model, with ``recompute`` the backward pass computes the blocks' forward again.
    """

    shard: bool = False
    accumulate: int = 1
    recompute: bool = False

    def passes(self, batch_size: int, world: World) -> list[range]:
        """The rows of the batch that this process reads, pass by pass. UsageError when they are no whole number."""
        parts = world.size * self.accumulate
        if batch_size % parts:
            shares = f"{world.size} processes" * (world.size > 1) + " times " * (world.size > 1 < self.accumulate)
            shares += f"--accumulate {self.accumulate}" * (self.accumulate > 1)
            raise UsageError(f"--batch-size: got {batch_size}, expected a multiple of {parts} ({shares})")
        length = batch_size // parts
        first = world.rank * self.accumulate * length
        return [range(start, start + length) for start in range(first, first + self.accumulate * length, length)]

    def engine(self, settings: Settings, vocab_size: int, device: Device, world: World) -> engines.Alone:
        """The freshly initialised model in this process; draws from torch's default generator."""

        def build() -> xLSTMLMModel:
            return build_model(settings, vocab_size)

        if self.shard or world.size > 1:
            from . import spread  # its imports take most of a second

            engine: engines.Alone
            engine = spread.Shards(build, device, world, settings.dtype) if self.shard else spread.Replicas(build, device, world)
        else:
            engine = engines.Alone(build, device)
        if self.recompute:
            engines.recompute(engine.model)
        return engine


DEFAULT_LAYOUT = Layout()


class Training:
    """Model, optimizer, step counter, history and random numbers of a run.

    A run restored from `state` goes on exactly as the one that was saved: same batches, same dropout, same bits. In another
    number of processes or passes it goes on equal to rounding; dropout then draws other masks.

    ``history`` holds [step, bits per byte] pairs: "training" the mean since the pair before, "held_out" each validation.
    """

    def __init__(
        self,
        settings: Settings,
        corpus: Corpus,
        device: Device,
        vocab_size: int = VOCAB_SIZE,
        layout: Layout = DEFAULT_LAYOUT,
        world: World = ALONE,
    ) -> None:
        self.settings = settings
        self.device = device
        self.layout = layout
        self.world = world
        self.corpus = corpus
        self.windows = Windows(corpus.training, settings.context_length, settings.batch_size, settings.seed)
        self.passes = layout.passes(settings.batch_size, world)
        torch.manual_seed(settings.seed)
        self.engine = layout.engine(settings, vocab_size, device, world)
        self.model = self.engine.model
        decayed, plain = self.model.get_weight_decay_optim_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": list(decayed), "weight_decay": settings.weight_decay}, {"params": list(plain), "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0
        self._draw_afresh()
        self.history: dict[str, list[list[float]]] = {"training": [], "held_out": []}
        self._history_every = max(1, settings.steps // HISTORY_POINTS)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device.device)
        self._loss_count = 0
        self._last_loss = self._loss_sum

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def last_loss(self) -> float:
        """Training loss of the last step in nats per token, the mean over all processes."""
        return float(self._last_loss)

    def train_step(self) -> None:
        """One optimizer step on the next batch."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([self._backward(rows, exchange=rows is self.passes[-1]) for rows in self.passes]).sum()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self._last_loss = self.world.mean(loss)
        self._loss_sum = self._loss_sum + self._last_loss
        self._loss_count += 1
        if self.step % self._history_every == 0:
            bits = float(self._loss_sum) / self._loss_count / math.log(2) * self.corpus.tokens_per_byte
            self.history["training"].append([self.step, bits])
            self._loss_sum, self._loss_count = torch.zeros_like(self._loss_sum), 0

    def _backward(self, rows: range, exchange: bool) -> Tensor:
        """Adds the gradients of these rows of the batch; their share of the step's loss."""
        batch = self.windows.batch(self.step, rows).to(self.device.device)
        with self.engine.exchanging(exchange):
            with self.arithmetic():
                logits = self.engine.runner(batch[:, :-1], backend=self.device.backend)
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten()) / len(self.passes)
            loss.backward()
        return loss.detach()

    def validate(self) -> float:
        """Bits per byte on the held-out text, also kept in the history."""
        before = self.corpus.training[-self.settings.context_length - 1 :]
        bits = held_out_bits(self.model, before, self.corpus.held_out, self.device, self.arithmetic(), self.world)
        figure = bits * self.corpus.held_out_tokens_per_byte
        self.history["held_out"].append([self.step, figure])
        return figure

    def is_best(self) -> bool:
        """Whether the last validation is the best so far."""
        figures = [figure for _, figure in self.history["held_out"]]
        return bool(figures) and all(figures[-1] < earlier for earlier in figures[:-1])

    def is_finite(self) -> bool:
        """False once the loss or a weight is NaN or infinite, in any process."""
        finite = math.isfinite(self.last_loss) and all(bool(p.isfinite().all()) for p in self.engine.own())
        return not self.world.any(not finite)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, where the settings ask for it."""
        if self.settings.dtype == "bfloat16":
            return torch.autocast(self.device.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors, numbers, strings, lists and dictionaries; whole in the first process."""
        random = self.world.gather(self.device.random_state())
        return {
            "settings": asdict(self.settings) | {"slstm_at": list(self.settings.slstm_at)},
            "step": self.step,
            "model": self.engine.weights(),
            "optimizer": self.engine.moments(self.optimizer),
            "history": self.history,
            "pending_loss": [float(self._loss_sum), self._loss_count],
            "random": random[0],
            "random_of_others": random[1:],
            "layout": self.shares(),
        }

    def shares(self) -> list[Any]:
        """What the rounding of sums depends on: the number of processes, what they hold, and the passes of a step."""
        return [self.world.size, self.engine.kind, self.layout.accumulate]

    def restore(self, state: dict[str, Any]) -> None:
        """Puts the run where `state` was taken; the state has passed `check_checkpoint`.

        Only the first process needs its "model" and "optimizer".
        """
        self.engine.restore(self.optimizer, state.get("model", {}), state.get("optimizer", {}))
        self.step = state["step"]
        self.history = state["history"]
        total, self._loss_count = state["pending_loss"]
        self._loss_sum = torch.full_like(self._loss_sum, total)
        random = [state["random"], *state.get("random_of_others", [])]
        if self.world.first or len(random) == self.world.size:
            self.device.set_random_state(random[self.world.rank])
        else:
            self._draw_afresh()

    def _draw_afresh(self) -> None:
        """Other random numbers in each process but the first, which goes on with those that it has."""
        if not self.world.first:
            torch.manual_seed((self.settings.seed * 1_000_003 + self.step * 65_537 + self.world.rank) % 2**63)


def build_model(settings: Settings, vocab_size: int = VOCAB_SIZE) -> xLSTMLMModel:
    """A freshly initialised model on the CPU. Draws from torch's default generator."""
    return xLSTMLMModel(settings.model_config(vocab_size))


def without_memory(settings: Settings, vocab_size: int = VOCAB_SIZE) -> xLSTMLMModel:
    """The model on the meta device. UsageError when the settings do not make one."""
    with option_names(), torch.device("meta"):
        return build_model(settings, vocab_size)


def check_checkpoint(content: Mapping[str, Any], where: str) -> tuple[Settings, xLSTMLMModel]:
    """Settings and model, without memory, of a training checkpoint whose weights are the model's and finite.

    Raises:
        CommandError: something is missing, or is not what `Training.state` gives.
    """
    settings = Settings.from_checkpoint(content.get("settings"), where)
    try:
        model = without_memory(settings, tokens.of_checkpoint(content, where).vocab_size)
    except UsageError as error:
        raise CommandError(f"{where}: {error}") from error
    weights = content.get("model")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CommandError(f"{where} holds no weights")
    expected = model.state_dict()
    misfit = f"{where} does not fit its settings"
    if different := sorted(map(str, weights.keys() ^ expected.keys())):
        raise CommandError(f"{misfit}: {different[0]} is {'unknown' if different[0] in weights else 'missing'}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            shapes = f"got {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            raise CommandError(f"{misfit}: size mismatch for {name}: {shapes}")
        if value.dtype != torch.float32 or value.layout != torch.strided or value.device.type != "cpu":
            raise CommandError(f"{misfit}: {name} is not a float32 tensor with values")
        if not value.isfinite().all():
            raise CommandError(f"{where} is of no use: {name} is not finite everywhere")
    return settings, model


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up to the peak, then a cosine that reaches zero after the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def held_out_bits(
    model: xLSTMLMModel,
    before: Tensor,
    held_out: Tensor,
    device: Device,
    arithmetic: contextlib.AbstractContextManager[Any],
    world: World = ALONE,
) -> float:
    """Mean -log2 p of every held-out token.

    The held-out text is cut into rows that are read side by side, in pieces with the recurrent state carried from piece to piece.
    A row first reads the ``len(before) - 1`` tokens in front of it, unscored, so that none is predicted without a context.
    The processes share out the rows.
    """
    model.eval()
    warm_up = len(before) - 1
    rows = max(1, min(VALIDATION_ROWS, len(held_out) // len(before)))
    length = -(-len(held_out) // rows)
    whole = F.pad(torch.cat([before.long(), held_out.long()]), (0, rows * length - len(held_out)))
    own = slice(world.rank, None, world.size)
    content = whole.unfold(0, warm_up + length + 1, length)[own]  # (rows, warm_up + length + 1)
    scored = (torch.arange(rows * length).view(rows, length) < len(held_out))[own]

    state, total = None, 0.0
    for start in range(0, warm_up + length, VALIDATION_CHUNK):
        end = min(start + VALIDATION_CHUNK, warm_up + length)
        with arithmetic:
            piece = content[:, start:end].to(device.device)
            logits, state = model(piece, state=state, return_last_state=True, backend=device.backend)
        first = max(start, warm_up)
        if first >= end:
            continue
        targets = content[:, first + 1 : end + 1].to(device.device)
        losses = F.cross_entropy(logits[:, first - start :].float().transpose(1, 2), targets, reduction="none")
        total += float(losses.double().masked_fill(~scored[:, first - warm_up : end - warm_up].to(device.device), 0).sum())
    return world.sum(total) / len(held_out) / math.log(2)
