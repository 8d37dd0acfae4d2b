"""A pytest plugin (`-p bench.gpu.watch`) that leaves a trace of every test even where the process dies, hangs or loses its GPU.

Events, one JSON object a line, go to the file that XLSTM_WATCH names as they happen: collected tests, the start and the outcome
of each, every call of a kernel's launcher. When a test takes longer than XLSTM_WATCH_SECONDS, a thread that needs no interpreter
lock writes the stacks of all threads to XLSTM_WATCH.stacks and ends the process; bench.gpu.tests starts another one for the rest.
A process ends as well after a test that leaves the CUDA context unusable, because every later test in it would fail for that.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TextIO

import pytest

LARGEST_NUMBER = 1 << 32  #: above are addresses, which tell a reader nothing


def telling(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a launch without addresses; of a view, which begins with one, the strides are left."""

    def told(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(one for one in map(told, value) if one is not None)
        return None if isinstance(value, int) and not -LARGEST_NUMBER < value < LARGEST_NUMBER else value

    return {name: short for name, value in fields.items() if (short := told(value)) not in (None, 0)}


class Watch:
    """Writes the events of one process."""

    def __init__(self, path: str, seconds: float, done: frozenset[str]) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.stacks: TextIO = open(path + ".stacks", "a")  # open as long as the process
        self.seconds, self.done = seconds, done
        self.noted: ModuleType | None = None

    def write(self, **event: Any) -> None:
        """One line, whole even when several workers write."""
        os.write(self.file, (json.dumps({"pid": os.getpid(), **event}) + "\n").encode())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.write(collected=[item.nodeid for item in items])
        kept = [item for item in items if item.nodeid not in self.done]
        if len(kept) < len(items):
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.done])
            items[:] = kept

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(uncollected=report.nodeid, why=str(report.longrepr)[-2000:])

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.note_launches()
        self.write(start=item.nodeid)
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.stacks)
        yield
        faulthandler.cancel_dump_traceback_later()
        if self.context_is_lost():
            self.write(lost_context_after=item.nodeid)
            os._exit(3)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        why = "" if report.passed else str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
        self.write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), why=why[-4000:])

    def note_launches(self) -> None:
        """Every function of the compiled module writes an event before it runs, so that the last one is known."""
        native = sys.modules.get("xlstm_cuda.native")
        module = getattr(native, "_C", None)
        if module is None or module is self.noted:
            return
        self.noted = module
        for name in dir(module):
            function = getattr(module, name)
            if type(function).__name__ == "builtin_function_or_method" and not name.startswith("_"):
                setattr(module, name, self.announced(name, function))

    def announced(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "stream" in kwargs:
                self.write(launch=name, **{"with": repr(telling(kwargs))})
            return function(*args, **kwargs)

        return call

    @staticmethod
    def context_is_lost() -> bool:
        """Whether an earlier error, such as an illegal address, makes every CUDA call of this process fail."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("XLSTM_WATCH")
    if not path:
        return
    done = os.environ.get("XLSTM_WATCH_DONE")
    with open(done) if done else open(os.devnull) as file:
        finished = frozenset(file.read().splitlines())
    config.pluginmanager.register(Watch(path, float(os.environ.get("XLSTM_WATCH_SECONDS", "60")), finished), "xlstm watch")
