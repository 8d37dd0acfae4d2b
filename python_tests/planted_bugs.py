"""Seeded bugs, one at a time, in a copy of the checkout whose tests must turn red: what the scripts of mLSTM and sLSTM share."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
Bug = tuple[str, str, str]  #: file, text that occurs once in it, what replaces the text


def table(name: str) -> dict[str, Bug]:
    """The bugs of ``planted/<name>.txt``, paragraphs of

        name of the bug
        in csrc/file.cuh
        - the text, which occurs once in the file
        + what it becomes

    More lines with ``-`` or ``+`` are more lines of the text; an empty last one ends it with a line break. Without a ``+`` the
    text is removed. ``#`` begins a comment.
    """
    bugs: dict[str, Bug] = {}
    for paragraph in (Path(__file__).parent / "planted" / f"{name}.txt").read_text().split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        bug, place, *changes = lines
        assert place.startswith("in ") and bug not in bugs and all(line[0] in "-+" for line in changes), paragraph
        old, new = ("\n".join(line[2:] for line in changes if line[0] == sign) for sign in "-+")
        bugs[bug] = (place.removeprefix("in "), old, new)
    return bugs


def scaled(file: str, line: str, results: Mapping[str, str]) -> dict[str, Bug]:
    """A bug for each result: multiplied by 0.98 in front of ``line`` of ``file`` (None stays); results: name -> expression."""
    planted = "    if {0} is not None:\n        {0} = {0} * 0.98\n"
    return {f"{name} x 0.98": (file, line, planted.format(value) + line) for name, value in results.items()}


def misplaced(bugs: Mapping[str, Bug]) -> list[str]:
    """The bugs that cannot be planted: their text does not occur exactly once, or would not change."""
    found = []
    for name, (file, old, new) in bugs.items():
        path = ROOT / file
        count = path.read_text().count(old) if path.exists() else 0
        if count != 1:
            found.append(f"{name}: the text to replace occurs {count} times in {file}: {old!r}")
        if old == new:
            found.append(f"{name}: replaces {old!r} by itself")
    return found


def plant(
    description: str | None,
    bugs: Mapping[str, Bug],
    tests: Sequence[str],
    module: str = "_simt",
    switches: Sequence[str] = (),
    unseen: Sequence[str] = (),
    in_both: Sequence[str] = (),
) -> int:
    """Plants every bug (or those of ``--only TEXT``), rebuilds ``module`` where C++ changed, runs the tests; 1 if one is missed.

    Python and the CUDA headers are those that build XLSTM_SIMT=ON; ``switches`` are more of CMake's. ``tests`` are pytest's
    arguments, enough to see each bug: all tests would take minutes per bug. ``unseen``: tests on the host executor, which is
    rebuilt too, and which must stay green: the bug is one that only ``module`` can show. ``in_both``: bugs that turn both red.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    only = parser.parse_args().only
    chosen = {name: bug for name, bug in bugs.items() if only in name}
    if not chosen:
        parser.error(f"--only {only}: no bug of that name")
    if lost := misplaced(chosen):
        raise SystemExit("\n".join(lost))
    missed, on_the_wrong_side = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), module, switches)
        if copy.tests_fail(tests):
            print("the tests fail without any bug")
            return 1
        stale = False  # does the module hold a bug of a source that is whole again?
        for name, (file, old, new) in chosen.items():
            path, started, of_module = copy.root / file, time.perf_counter(), not file.endswith(".py")
            source = path.read_text()
            path.write_text(source.replace(old, new))
            if stale or of_module:
                copy.compile()
            caught, stale = copy.tests_fail(tests), of_module
            if unseen:
                copy.compile("_simt")
                if copy.tests_fail(unseen) != (name in in_both):
                    on_the_wrong_side.append(name)
            path.write_text(source)
            print(f"{name:60} {'red' if caught else 'GREEN: missed'} ({time.perf_counter() - started:.0f} s)", flush=True)
            missed += [] if caught else [name]
    for name in on_the_wrong_side:
        expected = "seen by both, and was not" if name in in_both else f"seen by {module} alone, and was seen by both"
        print(f"{name:60} has to be {expected}")
    return bool(missed or on_the_wrong_side)


class Copy:
    """A checkout to break."""

    def __init__(self, folder: Path, module: str, switches: Sequence[str] = ()) -> None:
        self.root, self.build, self.module = folder / "checkout", folder / "build", module
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns("build", ".git", ".venv", "*.so"))
        pybind = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.run(
            "cmake", "-S", ".", "-B", str(self.build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DXLSTM_CUDA=OFF", "-DXLSTM_SIMT=ON", *switches,
            f"-Dpybind11_DIR={pybind}", f"-DPython_EXECUTABLE={sys.executable}",
        )  # fmt: skip
        self.compile("_simt", "_C")
        self.compile()

    def run(self, *command: str) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
        return done

    def compile(self, *targets: str) -> None:
        """``targets``, or the module that the bugs go into."""
        self.run("cmake", "--build", str(self.build), "-j2", "--target", *(targets or (self.module,)))
        for module in self.build.rglob("*.so"):
            shutil.copy(module, self.root / "xlstm_cuda")

    def tests_fail(self, tests: Sequence[str]) -> bool:
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if done.returncode in (2, 3, 4, 5):
            raise SystemExit(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode != 0  # 1, or a signal: a bug may crash the executor
