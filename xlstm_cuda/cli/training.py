"""The state of a training run and what moves it forward: one step, one validation, saving and restoring all of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import xLSTMLMModel
from .device import Device
from .errors import CommandError, UsageError
from .settings import Settings, option_names
from .text import Windows

VALIDATION_ROWS = 16
VALIDATION_CHUNK = 256
HISTORY_POINTS = 1000


class Training:
    """Model, optimizer, step counter, history and random numbers of a run.

    A run restored from `state` goes on exactly as the one that was saved: same batches, same dropout, same bits.

    ``history`` holds [step, bits per byte] pairs: "training" the mean since the pair before, "held_out" each validation.
    """

    def __init__(self, settings: Settings, training: Tensor, held_out: Tensor, device: Device) -> None:
        self.settings = settings
        self.device = device
        self.windows = Windows(training, settings.context_length, settings.batch_size, settings.seed)
        self.held_out = held_out[: settings.eval_bytes]
        self.before_held_out = training[-settings.context_length - 1 :]
        torch.manual_seed(settings.seed)
        self.model = build_model(settings).to(device.device)
        decayed, plain = self.model.get_weight_decay_optim_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": list(decayed), "weight_decay": settings.weight_decay}, {"params": list(plain), "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0
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
        """Training loss of the last step in nats per byte."""
        return float(self._last_loss)

    def train_step(self) -> None:
        """One optimizer step on the next batch."""
        self.model.train()
        batch = self.windows.batch(self.step).to(self.device.device)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        with self.arithmetic():
            logits = self.model(batch[:, :-1], backend=self.device.backend)
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self._last_loss = loss.detach()
        self._loss_sum = self._loss_sum + self._last_loss
        self._loss_count += 1
        if self.step % self._history_every == 0:
            self.history["training"].append([self.step, float(self._loss_sum) / self._loss_count / math.log(2)])
            self._loss_sum, self._loss_count = torch.zeros_like(self._loss_sum), 0

    def validate(self) -> float:
        """Bits per byte on the held-out bytes, also kept in the history."""
        figure = held_out_bits_per_byte(self.model, self.before_held_out, self.held_out, self.device, self.arithmetic())
        self.history["held_out"].append([self.step, figure])
        return figure

    def is_best(self) -> bool:
        """Whether the last validation is the best so far."""
        figures = [figure for _, figure in self.history["held_out"]]
        return bool(figures) and all(figures[-1] < earlier for earlier in figures[:-1])

    def is_finite(self) -> bool:
        """False once the loss or a weight is NaN or infinite."""
        return math.isfinite(self.last_loss) and all(bool(p.isfinite().all()) for p in self.model.parameters())

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, where the settings ask for it."""
        if self.settings.dtype == "bfloat16":
            return torch.autocast(self.device.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as tensors, numbers, strings, lists and dictionaries."""
        return {
            "settings": asdict(self.settings) | {"slstm_at": list(self.settings.slstm_at)},
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "pending_loss": [float(self._loss_sum), self._loss_count],
            "random": self.device.random_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts the run where `state` was taken; the state has passed `check_checkpoint`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.history = state["history"]
        total, self._loss_count = state["pending_loss"]
        self._loss_sum = torch.full_like(self._loss_sum, total)
        self.device.set_random_state(state["random"])


def build_model(settings: Settings) -> xLSTMLMModel:
    """A freshly initialised model on the CPU. Draws from torch's default generator."""
    return xLSTMLMModel(settings.model_config())


def without_memory(settings: Settings) -> xLSTMLMModel:
    """The model on the meta device. UsageError when the settings do not make one."""
    with option_names(), torch.device("meta"):
        return build_model(settings)


def check_checkpoint(content: Mapping[str, Any], where: str) -> tuple[Settings, xLSTMLMModel]:
    """Settings and model, without memory, of a training checkpoint whose weights are the model's and finite.

    Raises:
        CommandError: something is missing, or is not what `Training.state` gives.
    """
    settings = Settings.from_checkpoint(content.get("settings"), where)
    try:
        model = without_memory(settings)
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
def held_out_bits_per_byte(
    model: xLSTMLMModel, before: Tensor, held_out: Tensor, device: Device, arithmetic: contextlib.AbstractContextManager[Any]
) -> float:
    """Mean -log2 p of every held-out byte.

    The held-out text is cut into rows that are read side by side, in pieces with the recurrent state carried from piece to piece.
    A row first reads the ``len(before) - 1`` bytes in front of it, unscored, so that no byte is predicted without a context.
    """
    model.eval()
    warm_up = len(before) - 1
    rows = max(1, min(VALIDATION_ROWS, len(held_out) // len(before)))
    length = -(-len(held_out) // rows)
    whole = F.pad(torch.cat([before, held_out]), (0, rows * length - len(held_out))).long()
    content = whole.unfold(0, warm_up + length + 1, length)  # (rows, warm_up + length + 1)
    scored = torch.arange(rows * length).view(rows, length) < len(held_out)

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
    return total / len(held_out) / math.log(2)
