"""Run folders: where a training run keeps its files, and how the commands find it again."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from . import checkpoint
from .errors import CommandError

RUNS = Path("runs")
CURVE = "loss.png"


def next_folder() -> Path:
    """runs/001, runs/002, ...: the first number above every one in use."""
    return RUNS / f"{max(_numbers(), default=0) + 1:03}"


def latest_folder() -> Path:
    """The run folder with the highest number that holds a checkpoint.

    Raises:
        CommandError: there is none.
    """
    for number in sorted(_numbers(), reverse=True):
        if (folder := RUNS / f"{number:03}").joinpath(checkpoint.LAST).exists():
            return folder
    raise CommandError(f"no run found in {RUNS.resolve()}; start one with `python -m xlstm_cuda train`")


def _numbers() -> list[int]:
    return [int(entry.name) for entry in RUNS.iterdir() if entry.name.isdecimal()] if RUNS.is_dir() else []


class Lock:
    """Holds a run folder for one process at a time; the system lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Lock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CommandError(f"--out: cannot write to {self.folder}: {error.strerror}") from None
        try:
            import fcntl

            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # a system without flock: two runs in one folder are then the user's care
        except OSError:
            os.close(self._descriptor)
            raise CommandError(f"--out: another training run is writing to {self.folder}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)
