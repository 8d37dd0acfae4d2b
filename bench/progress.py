"""How far a benchmark is: a bar that redraws itself on a terminal, a line per case anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


class Progress:
    """Counts the cases."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total, self.done = total, 0
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.started = time.monotonic()

    def start(self, case: str) -> None:
        """The next case."""
        self.case = case
        if not self.is_terminal:
            self._write(f"[{self.done + 1}/{self.total}] {time.monotonic() - self.started:4.0f} s  {case}\n")
        self.show("")

    def show(self, what: str) -> None:
        """What is being done inside the case."""
        if self.is_terminal:
            filled = int(20 * self.done / max(self.total, 1))
            bar = "[" + ("=" * filled + ">").ljust(20)[:20] + "]"
            line = f"{self.done}/{self.total} {bar} {time.monotonic() - self.started:.0f} s  {self.case}  {what}"
            self._write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])

    def finish(self) -> None:
        """The case is done; takes the bar away, so that a table can follow."""
        self.done += 1
        if self.is_terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
