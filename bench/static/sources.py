"""Which sources a kernel file is made of, and their hash: the key under which its figures stay valid."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HOST_ALONE = CSRC / "device/launch.cuh"  #: how kernels are launched: nothing that ptxas sees is made of it


def kernel_files() -> list[str]:
    """XLSTM_KERNELS and XLSTM_SELFTEST_KERNELS of CMakeLists.txt, relative to the root."""
    text = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
    lists = re.findall(r"(?:set|list)\((?:APPEND )?XLSTM_(?:SELFTEST_)?KERNELS\s([^)]*)\)", text)
    return list(dict.fromkeys(name for names in lists for name in names.split()))


def key(file: str) -> str:
    """Of a kernel file and every header that its device code is made of; comments and line breaks do not count."""
    return digest(closure(ROOT / file) - {HOST_ALONE})


def digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(files):
        text = path.read_text() if path.suffix == ".py" else code(path.read_text())
        found.update(f"{path.relative_to(ROOT)}\0{text}\0".encode())
    return found.hexdigest()[:16]


def code(text: str) -> str:
    """C++ without comments, its white space as single spaces; directives keep lines of their own."""
    literal = r'"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\''
    text = re.sub(rf"({literal})|//[^\n]*|/\*.*?\*/", lambda found: found[1] or " ", text, flags=re.S)
    parts = re.split(r"^([ \t]*#(?:[^\n]*\\\n)*[^\n]*)", text, flags=re.M)
    return "\n".join(stripped for part in parts if (stripped := " ".join(part.split())))


def closure(file: Path) -> set[Path]:
    """The file and the headers of csrc/ below it."""
    found, open_files = set(), [file]
    while open_files:
        one = open_files.pop()
        if one not in found:
            found.add(one)
            open_files += included(one)
    return found


@functools.cache
def included(file: Path) -> list[Path]:
    names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.M)
    candidates = [path for name in names for path in (CSRC / name, file.parent / name)]
    return [path.resolve() for path in candidates if path.exists()]


def executor_key() -> str:
    """Of everything that decides what the host executor counts: kernels, their launches, the executor, the calls."""
    files = [p for folder in ("device", "mlstm", "slstm", "simt") for p in (CSRC / folder).rglob("*") if p.is_file()]
    files += [*(ROOT / "xlstm_cuda/ops").glob("*_kernel*.py"), ROOT / "bench/static/executor.py"]
    return digest(p for p in files if p.suffix in (".cu", ".cuh", ".h", ".cpp", ".py"))
