"""Runs test files so that a hang, a crash or a lost CUDA context costs one test: `python -m bench.gpu.tests --help`.

Every file gets a pytest process of its own with the plugin `watch`, several at once, and another one for the tests that a dead
process left behind. (pytest-xdist would do the first half, but with whole files per worker it can wait for ever after a crash.)
Tests that passed in an earlier run with the same folder are not run again. The last lines say what was seen: how many passed, why
tests were skipped, and for everything else the reason; for a hang the launch it waits for and the stacks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkout import ROOT
from .stages import SECONDS_LEFT

MOST_PROCESSES = 8
RESERVE = 5.0  #: seconds of the limit that are kept for the report
ENDED_BY_ITSELF = (0, 1, 5)  #: pytest's exit status: all passed, some failed, none selected


@dataclass
class Seen:
    """What the events of a run tell. ``unfinished``: tests that were started and have no outcome, with their last launch."""

    collected: set[str] = field(default_factory=set)
    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    uncollected: dict[str, str] = field(default_factory=dict)
    lost_context: list[str] = field(default_factory=list)

    @property
    def left(self) -> set[str]:
        """Collected and never started."""
        return self.collected - self.outcomes.keys() - self.unfinished.keys()

    @property
    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}

    @property
    def red(self) -> dict[str, str]:
        """Failed, hung, crashed or not collected, with the reason."""
        failed = {test: self.reasons.get(test, "") for test, outcome in self.outcomes.items() if outcome == "failed"}
        hung = {test: f"hung or crashed; last launch: {launch or 'none'}" for test, launch in self.unfinished.items()}
        return {**self.uncollected, **failed, **hung}


def read(lines: Iterable[str]) -> Seen:
    """The events of `watch`; a line that was cut off is left out."""
    seen, running, launches = Seen(), {}, {}
    for line in lines:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        pid = event.get("pid")
        if "collected" in event:
            seen.collected |= set(event["collected"])
        elif "uncollected" in event:
            seen.uncollected[event["uncollected"]] = event["why"]
        elif "start" in event:
            running[pid], launches[pid] = event["start"], ""
            seen.unfinished[event["start"]] = ""
        elif "launch" in event and pid in running:
            launches[pid] = seen.unfinished[running[pid]] = f"{event['launch']} {event['with']}"
        elif "test" in event:
            test = event["test"]
            seen.unfinished.pop(test, None)
            running.pop(pid, None)
            if seen.outcomes.get(test) != "failed":
                seen.outcomes[test], seen.reasons[test] = event["outcome"], event["why"]
            seen.seconds[test] = seen.seconds.get(test, 0.0) + event["seconds"]
        elif "lost_context_after" in event:
            seen.lost_context.append(event["lost_context_after"])
    return seen


class File:
    """One test file: its pytest processes, one after the other, and the events they leave."""

    def __init__(self, path: str, options: argparse.Namespace) -> None:
        self.path, self.options = path, options
        self.base = options.out / f"{options.name}.{Path(path).stem}"
        self.events = Path(f"{self.base}.events.jsonl")
        self.stacks = Path(f"{self.events}.stacks")
        self.stacks.unlink(missing_ok=True)
        self.passed_before = read(lines_of(self.events)).passed
        self.begin = len(lines_of(self.events))
        self.log = open(f"{self.base}.log", "w")  # as long as the processes
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None

    @property
    def seen(self) -> Seen:
        return read(lines_of(self.events)[self.begin :])

    def start(self) -> None:
        self.before = self.seen
        done = Path(f"{self.base}.done")
        done.write_text("\n".join(self.passed_before | self.before.outcomes.keys() | self.before.unfinished.keys()))
        settings = {"XLSTM_WATCH": self.events, "XLSTM_WATCH_SECONDS": self.options.test_seconds, "XLSTM_WATCH_DONE": done}
        self.process = subprocess.Popen(
            pytest_command(self.path, keyword=self.options.keyword), cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT,
            env={**os.environ, **{name: str(value) for name, value in settings.items()}}, start_new_session=True,
        )  # fmt: skip

    def goes_on(self) -> bool:
        """Whether the ended process left tests behind that another one can run."""
        after = self.seen
        progressed = len(after.outcomes) + len(after.unfinished) > len(self.before.outcomes) + len(self.before.unfinished)
        return progressed and bool(after.left - self.passed_before)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tests", description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the files that are left in the folder")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--seconds", type=float, default=300, help="for everything")
    parser.add_argument("--test-seconds", type=float, default=60, help="for one test")
    parser.add_argument("-k", dest="keyword", default="", help="as pytest's")
    parser.add_argument("--collect-only", action="store_true", help="an error in a file or an empty selection shows")
    most = min(MOST_PROCESSES, max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--processes", type=int, default=most, help="files at a time; default here: %(default)s")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args(arguments)
    if options.collect_only:
        return subprocess.run(
            [*pytest_command(*options.files, keyword=options.keyword), "--collect-only", "-q"], cwd=ROOT
        ).returncode
    options.out = options.out.resolve()  # pytest runs in another folder
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = min(options.seconds, float(os.environ.get(SECONDS_LEFT, "inf")))
    files = [File(path, options) for path in options.files]
    run(files, options.processes, time.monotonic() + seconds - RESERVE)
    print(summary(files), flush=True)
    return int(not good(files))


def pytest_command(*files: str, keyword: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "--color=no", "-p", "no:cacheprovider", "-p", "bench.gpu.watch"]
    command += ["--continue-on-collection-errors"]
    command += ["--timeout", "0"] if importlib.util.find_spec("pytest_timeout") else []  # watch keeps the time
    return [*command, *(["-k", keyword] if keyword else []), *files]


def run(files: Sequence[File], processes: int, deadline: float) -> None:
    """Runs every file to its last test, or as far as the time goes."""
    waiting = list(files)
    running: list[File] = []
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(0.05)
        for file in [one for one in running if one.process is not None and one.process.poll() is not None]:
            running.remove(file)
            file.status = file.process.returncode if file.process else None
            if file.goes_on():
                print(
                    f"{file.path}: pytest ended with {file.status} before the last test; the rest in another process", flush=True
                )
                waiting.insert(0, file)
            else:
                print(f"{file.path}: {counts(file.seen, file.passed_before)}", flush=True)
        if time.monotonic() > deadline:
            for file in running:
                file.stop()
                file.status = None
                print(f"{file.path}: the time is over: {counts(file.seen, file.passed_before)}", flush=True)
            return


def good(files: Sequence[File]) -> bool:
    """Everything that was collected has run, nothing is red, and something has passed: a skip is no pass."""
    complete = all(file.status in ENDED_BY_ITSELF and not file.seen.left - file.passed_before for file in files)
    return complete and not any(file.seen.red for file in files) and any(file.seen.passed | file.passed_before for file in files)


def summary(files: Sequence[File]) -> str:
    """For the end of the log: what was red last but one, the counts last."""
    all_seen = [file.seen for file in files]
    skipped = Counter(seen.reasons[test] for seen in all_seen for test, outcome in seen.outcomes.items() if outcome == "skipped")
    lines = ["", "---- skipped", *(f"{count} x {reason}" for reason, count in skipped.most_common())]
    lines += ["---- stacks of tests that took too long"]
    lines += [file.stacks.read_text() for file in files if file.seen.unfinished and file.stacks.exists()]
    times = sorted(((taken, test) for seen in all_seen for test, taken in seen.seconds.items()), reverse=True)
    lines += ["---- slowest", *(f"{seconds:6.1f} s {test}" for seconds, test in times[:10])]
    lines += ["---- red"]
    lines += [f"{test}: {why.strip() or 'no reason was left'}" for seen in all_seen for test, why in seen.red.items()]
    lines += [f"lost the CUDA context: {test}" for seen in all_seen for test in seen.lost_context]
    unread = [file.path for file in files if file.status not in ENDED_BY_ITSELF]
    lines += [f"not run to its end: {path}" for path in unread]
    total, before = Seen(), set[str]()
    for file, seen in zip(files, all_seen):
        before |= file.passed_before
        for name in ("collected", "outcomes", "unfinished", "uncollected"):
            getattr(total, name).update(getattr(seen, name))
    return "\n".join([*lines, counts(total, before)])


def counts(seen: Seen, passed_before: set[str]) -> str:
    skipped = sum(outcome == "skipped" for outcome in seen.outcomes.values())
    left = len(seen.left - passed_before)
    found = [f"{len(seen.passed)} passed", f"{len(seen.red)} red", f"{skipped} skipped"]
    found += [f"{left} not run"] if left else []
    return ", ".join(found + ([f"{len(passed_before)} passed before"] if passed_before else []))


def lines_of(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


if __name__ == "__main__":
    raise SystemExit(main())
