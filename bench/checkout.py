"""This checkout: its root, its commit, a hash of its files. For machines that are still bare: the standard library alone."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What the compiled modules are made of, and what a result depends on beside them.
BUILT = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc")
ALL = (*BUILT, "xlstm_cuda", "bench", "python_tests")
SUFFIXES = (".txt", ".toml", ".cmake", ".in", ".h", ".cpp", ".cu", ".cuh", ".py")


def output_of(*command: str) -> str:
    """What a command prints, stripped; empty when it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> str:
    """Short hash of the checkout, with "+" when a tracked file outside bench/results and docs differs from it.

    Without git (a copied folder) the hash of the sources stands in for it, so that results of two versions never mix.
    """
    head = output_of("git", "rev-parse", "--short", "HEAD")
    if not head:
        return f"sources-{sources()}"
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!docs")
    return head + ("+" if changed else "")


def sources(names: Sequence[str] = ALL, root: Path = ROOT) -> str:
    """A hash of the source files under these names, 12 digits: equal for equal files, wherever they lie, with or without git."""
    digest = hashlib.sha256()
    for path in _files(names, root):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _files(names: Sequence[str], root: Path) -> Iterator[Path]:
    for name in names:
        found = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*"))
        for path in found:
            parts = path.relative_to(root).parts
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in parts and parts[:2] != ("bench", "results"):
                yield path
