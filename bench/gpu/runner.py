"""Runs stages one after the other: each with its time limit, a log and a line in stages.json; what passed is not run again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..checkout import ROOT, output_of, sources
from .install import CANNOT_BE_REHEARSED
from .stages import LIMIT, SECONDS_LEFT, Stage

LEAST_SECONDS = 15  #: of a stage that is still started before the command's own limit
NOT_REHEARSED = "not rehearsed"
KEPT = ROOT / "build/gpu"  #: where a command finds what an earlier one has left, when $OUT is a new folder each time


def gpu() -> tuple[str, str]:
    """The GPU's name and the architecture to build for, empty without one."""
    line = output_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader").split("\n")[0]
    name, _, capability = (part.strip() for part in line.rpartition(","))
    if not re.fullmatch(r"\d+\.\d+", capability):
        return "", ""
    architecture = capability.replace(".", "")
    return re.sub(r"[^A-Za-z0-9.]+", "-", name), {"90": "90a"}.get(architecture, architecture) + "-real"


def results_folder(name: str) -> Path:
    """$OUT or bench/results, and in it a folder for this GPU and these sources: results of two versions never mix."""
    base = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "bench/results"
    return (base / f"{name}-{sources()}").resolve()


def resume(folder: Path) -> None:
    """Fills a folder in a new $OUT with what earlier commands have kept."""
    kept = KEPT / folder.name
    if os.environ.get("OUT") and kept.is_dir():
        shutil.copytree(kept, folder, dirs_exist_ok=True)


def keep(folder: Path) -> None:
    """Leaves a copy for the next command, when $OUT may be another folder then."""
    if os.environ.get("OUT"):
        shutil.copytree(folder, KEPT / folder.name, dirs_exist_ok=True)


def run_all(plan: Sequence[Stage], folder: Path, dry: bool, again: bool, limit: float = LIMIT) -> bool:
    """Whether every stage passed, now or before. ``dry`` runs the rehearsals; ``again`` also what passed before.

    After ``limit`` seconds nothing is started any more: the same command goes on from there the next time.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "stages.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    names = [f"{stage.name} (dry run)" if dry else stage.name for stage in plan]
    for name, stage in zip(names, plan):
        if done.get(name, {}).get("result") == "passed" and not again and not stage.always:
            print(f"{name}: passed before")
            continue
        left = limit - (time.monotonic() - started)
        if left < min(LEAST_SECONDS, stage.seconds):
            print(f"{name}: not started, the {limit:.0f} s of a command are over; run it again to go on from here")
            break
        log = folder / f"{stage.name}.log"
        result, seconds = run(stage, stage.rehearsal if dry else stage.commands, log, min(left, stage.seconds))
        done[name] = {"result": result, "seconds": round(seconds, 1)}
        record.write_text(json.dumps(done, indent=1) + "\n")
        keep(folder)
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        print(f"{name}: {result} in {seconds:.0f} s; {last}", flush=True)
        if result != "passed" and stage.required:
            break
    results = [done.get(name, {}).get("result") for name in names]
    if dry and plan[0].required and results[0] == NOT_REHEARSED:
        print("the other stages need the package: not rehearsed either")
        return True
    return all(result == "passed" for result in results)


def run(stage: Stage, commands: Sequence[Sequence[str]], log: Path, seconds: float | None = None) -> tuple[str, float]:
    """ "passed", "failed", "timed out" or "not rehearsed", and the seconds. After a command that fails the next one still runs.

    seconds: less than the stage's own limit, where the command has less left.
    """
    limit = stage.seconds if seconds is None else seconds
    started, result = time.monotonic(), "passed"
    with log.open("w") as out:
        for command in commands:
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            left = limit - (time.monotonic() - started)
            if left <= 0:
                return "timed out", time.monotonic() - started
            settings = {**os.environ, **stage.environment, SECONDS_LEFT: str(left)}
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=settings, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )  # fmt: skip
            except OSError as error:
                out.write(f"{error}\n")
                result = "failed"
                continue
            try:
                if status := process.wait(timeout=left):
                    result = NOT_REHEARSED if status == CANNOT_BE_REHEARSED else "failed"
            except subprocess.TimeoutExpired:
                end(process)
                return "timed out", time.monotonic() - started
    return result, time.monotonic() - started


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process with everything it has started, in sessions of their own too: compilers, pytest's workers."""
    family = [process.pid]
    for parent in family:
        family += children(parent)
    for pid in family:  # parents first, so that none starts another child
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()  # after the name, which may hold anything: state, parent
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


def archive(folder: Path, command: str) -> Path:
    """Everything in the folder as one file beside it."""
    path = folder.parent / f"{folder.name}-{command}.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        out.add(folder, folder.name)
    return path
