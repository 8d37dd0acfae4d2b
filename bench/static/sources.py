"""Which sources a kernel file is made of, and their hash: the key under which its figures stay valid."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


def kernel_files() -> list[str]:
    """XLSTM_KERNELS and XLSTM_SELFTEST_KERNELS of CMakeLists.txt, relative to the root."""
    text = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
    lists = re.findall(r"(?:set|list)\((?:APPEND )?XLSTM_(?:SELFTEST_)?KERNELS\s([^)]*)\)", text)
    return list(dict.fromkeys(name for names in lists for name in names.split()))


def key(file: str) -> str:
    """Of a kernel file and every header of csrc/ that it includes, directly or not."""
    digest = hashlib.sha256()
    for path in sorted(closure(ROOT / file)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


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
    digest = hashlib.sha256()
    files = [p for folder in ("device", "mlstm", "slstm", "simt") for p in (CSRC / folder).rglob("*") if p.is_file()]
    files += [*(ROOT / "xlstm_cuda/ops").glob("*_kernel*.py"), ROOT / "bench/static/executor.py"]
    for path in sorted(p for p in files if p.suffix in (".cu", ".cuh", ".h", ".cpp", ".py")):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
