"""Runs stages one after the other: each with its time limit, a log and a line in stages.json; what passed is not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..environment import ROOT, output_of
from .stages import Stage


def gpu() -> tuple[str, str]:
    """The GPU's name and the architecture to build for, empty without one."""
    line = output_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader").split("\n")[0]
    if not line:
        return "", ""
    name, capability = (part.strip() for part in line.split(","))
    architecture = capability.replace(".", "")
    return name.replace(" ", "-"), {"90": "90a"}.get(architecture, architecture) + "-real"


def run_all(plan: Sequence[Stage], folder: Path, dry: bool, again: bool) -> bool:
    """Whether every stage passed, now or before. ``dry`` runs the rehearsals; ``again`` also what passed before."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "stages.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    for stage in plan:
        name = f"{stage.name} (dry run)" if dry else stage.name
        if done.get(name, {}).get("result") == "passed" and not again:
            print(f"{name}: passed before")
            continue
        log = folder / f"{stage.name}.log"
        result, seconds = run(stage, stage.rehearsal if dry else stage.commands, log)
        done[name] = {"result": result, "seconds": round(seconds, 1)}
        record.write_text(json.dumps(done, indent=1) + "\n")
        last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        print(f"{name}: {result} in {seconds:.0f} s; {last}", flush=True)
        if result != "passed" and stage.required:
            break
    return all(done.get(f"{s.name} (dry run)" if dry else s.name, {}).get("result") == "passed" for s in plan)


def run(stage: Stage, commands: Sequence[Sequence[str]], log: Path) -> tuple[str, float]:
    """ "passed", "failed" or "timed out", and the seconds. A command that fails does not keep the next one from running."""
    started, result = time.monotonic(), "passed"
    with log.open("w") as out:
        for command in commands:
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            left = stage.seconds - (time.monotonic() - started)
            if left <= 0:
                return "timed out", time.monotonic() - started
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **stage.environment}, stdout=out, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                out.write(f"{error}\n")
                result = "failed"
                continue
            try:
                if process.wait(timeout=left):
                    result = "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started: compilers, workers
                process.wait()
                return "timed out", time.monotonic() - started
    return result, time.monotonic() - started


def archive(folder: Path, command: str) -> Path:
    """Everything in the folder as one file beside it."""
    path = folder.parent / f"{folder.name}-{command}.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        out.add(folder, folder.name)
    return path
