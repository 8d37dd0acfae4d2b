"""The command in several processes, each with the variables that torchrun sets, forked from one process that has the imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributed

from xlstm_cuda.cli import checkpoint, main, spread  # noqa: F401 (the server imports once what every process needs)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ranks"])


def _start_the_server() -> None:
    """Once. It looks for modules where the environment says, not where this process does (before Python 3.13)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent))))
        forkserver.ensure_running()


class End(NamedTuple):
    """Of one process."""

    code: int
    out: str
    err: str


class Ranks:
    """Processes that run the command together, and the store that torchrun's agent keeps for them.

    Args:
        options: one list for all, or one for each.
        before: called in each with its rank, before the command.
        variables: of the environment, besides torchrun's.
    """

    def __init__(
        self,
        count: int,
        *options: str | list[str],
        before: Callable[[int], None] | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.logs = Path(tempfile.mkdtemp(prefix="ranks-", dir="."))
        self.store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=100))
        self.processes = []
        _start_the_server()
        for rank in range(count):
            own = list(options[rank]) if isinstance(options[0], list) else list(options)
            environment = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                "GLOO_SOCKET_IFNAME": "lo", **variables,
            }  # fmt: skip
            process = _context.Process(target=_run, args=(own, environment, os.getcwd(), self.logs, rank, before))
            process.start()
            self.processes.append(process)

    def kill(self, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()

    def wait_for_step(self, folder: str, step: int) -> None:
        """Until the checkpoint in the folder has come this far."""
        path = Path(folder, checkpoint.LAST)
        deadline = time.monotonic() + 300
        while not (path.exists() and checkpoint.load(path)["step"] >= step):
            assert time.monotonic() < deadline and all(p.is_alive() for p in self.processes), self.ends()
            time.sleep(0.01)

    def ends(self, timeout: float = 300) -> list[End]:
        """Waits for all."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill(*late) if late else None
        ends = [
            End(p.exitcode, *((self.logs / f"{rank}.{name}").read_text() for name in ("out", "err")))
            for rank, p in enumerate(self.processes)
        ]
        assert not late, f"processes {late} did not end: {ends}"
        return ends


def _run(options: list[str], environment: dict[str, str], folder: str, logs: Path, rank: int, before) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        file = os.open(logs / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    torch.set_num_threads(1)
    if before is not None:
        before(rank)
    code = main(["train", *options])
    sys.stdout.flush()
    os._exit(code)


def run(count: int, *options: str | list[str], **more: Any) -> list[End]:
    """The command in ``count`` processes, to its end; ``more`` as in `Ranks`."""
    return Ranks(count, *options, **more).ends()
