"""Ctrl-C: while the command is still importing it ends in one line, and in an optimizer step it leaves no half step behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


def importing() -> None:
    """Called before the package's imports, which take seconds. In the command's own process Ctrl-C then ends it in one line.

    No exception: imports of other packages catch them, or turn them into others. Every other process keeps its handling.
    """
    if is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:
            signal.signal(signal.SIGINT, _end)
        except ValueError:  # not the main thread
            pass


def imported() -> None:
    """From here on Ctrl-C is Python's KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_the_command() -> bool:
    """`python -m xlstm_cuda`, which has "-m" for its name until __main__ is found, or the script of the same command."""
    arguments = getattr(sys, "argv", [])  # absent where Python is embedded
    if arguments[:1] == ["-m"]:
        return not {"xlstm_cuda", "-mxlstm_cuda"}.isdisjoint(sys.orig_argv)
    return Path(*arguments[:1]).stem == "xlstm-cuda"


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"xlstm_cuda: interrupted\n")
    os._exit(1)


class StopRequest:
    """Inside the block the first SIGINT or SIGTERM only sets ``requested``; the loop looks there between two steps.

    A second signal acts at once, as outside the block.

    Args:
        to_the_end: no second signal acts, not even after an error, so that none cuts off what the process saves and says as it
            ends. torchrun sends several, and kills what has not ended half a minute later.
    """

    def __init__(self, to_the_end: bool = False) -> None:
        self.requested = False
        self.to_the_end = to_the_end
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: whoever runs it there keeps its own handling
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not self.to_the_end:
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self.to_the_end:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
