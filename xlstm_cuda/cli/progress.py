"""How far training is: a bar that redraws itself on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

PLAIN_SECONDS = 5.0
REDRAW_SECONDS = 0.1


class Progress:
    """Shows step, training loss, bits per byte, tokens per second and the time left."""

    def __init__(
        self, steps: int, first_step: int, tokens_per_step: int, tokens_per_byte: float = 1.0, stream: TextIO | None = None
    ) -> None:
        self.stream = stream or sys.stdout
        self.is_terminal = self.stream.isatty()
        self.steps = steps
        self.tokens_per_step = tokens_per_step
        self.tokens_per_byte = tokens_per_byte
        self._step = first_step
        self._time = time.monotonic()
        self._shown = -math.inf
        self._seconds_per_step = 0.0
        self._bar_is_drawn = False

    def due(self) -> bool:
        """Whether `update` would print. Asking first saves the caller from fetching the loss off a device for nothing."""
        return time.monotonic() - self._shown >= (REDRAW_SECONDS if self.is_terminal else PLAIN_SECONDS)

    def update(self, step: int, loss: float, force: bool = False) -> None:
        """Prints where training is. ``loss`` is in nats per token."""
        if not force and not self.due():
            return
        self._measure(step)
        numbers = f"loss {loss:.3f}  {loss / math.log(2) * self.tokens_per_byte:.3f} bits/byte  {self._speed()}"
        counter = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        if self.is_terminal:
            width = shutil.get_terminal_size().columns - 1
            bar = _bar(step / self.steps, min(30, width - len(counter) - len(numbers) - 6))
            self.stream.write("\r\x1b[K" + f"{counter} {bar}{numbers}"[:width])
            self._bar_is_drawn = True
        else:
            self.stream.write(f"{counter}  {numbers}\n")
        self.stream.flush()
        self._shown = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside the block (validation, saving) does not count as training time in the speed."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._time += time.monotonic() - started

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.close()
        self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Takes the bar away, so that other lines can follow."""
        if self._bar_is_drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._bar_is_drawn = False

    def _measure(self, step: int) -> None:
        now = time.monotonic()
        if step > self._step:
            latest = (now - self._time) / (step - self._step)
            share = 1.0 if self._seconds_per_step == 0 else 1 - 0.9 ** (step - self._step)
            self._seconds_per_step += share * (latest - self._seconds_per_step)
            self._step, self._time = step, now

    def _speed(self) -> str:
        if self._seconds_per_step == 0:
            return ""
        left = (self.steps - self._step) * self._seconds_per_step
        return f"{self.tokens_per_step / self._seconds_per_step:,.0f} tokens/s  {duration(left)} left"


def _bar(share: float, width: int) -> str:
    if width < 5:
        return " "
    filled = int(share * width)
    return "[" + ("=" * filled + ">" * (filled < width)).ljust(width) + "]  "


def duration(seconds: float) -> str:
    """1:05 or 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
