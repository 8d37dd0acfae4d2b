"""The first stage of every command: the package compiled for this GPU, unless it is installed from the very same sources already.

`python -m bench.gpu.install --architecture 90a-real`, or `--rehearse FOLDER` without a GPU: a build for the CPU into FOLDER where
the package is missing. Nothing here needs the package, torch, or anything else beyond pip.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ..checkout import BUILT, ROOT, sources

STAMP = "built-from.json"  #: beside the installed modules
BUILDS_WITH = {"scikit_build_core": "scikit-build-core", "pybind11": "pybind11"}
CANNOT_BE_REHEARSED = 77  #: exit status

#: Run in a process of its own: what is installed, where it lies, and what it can do here.
REPORT = """
import platform, torch
print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
import xlstm_cuda
from xlstm_cuda import native
print(native._C.__file__)
print(*xlstm_cuda.backends().values(), sep="\\n")
"""
USABLE = """
if not xlstm_cuda.backends()["cuda"]:
    raise SystemExit("backend cuda is not usable after the installation: see the line above")
if not hasattr(native._C, "run_primitive"):
    raise SystemExit(f"{native._C.__file__} has no test kernels: a module of another build hides the installed one; remove it")
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.install", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="90a-real", help="as CUDAARCHS takes it")
    parser.add_argument("--bounded-waits", action="store_true", help="a wait in a kernel that nobody ends names its line")
    parser.add_argument("--rehearse", type=Path, metavar="FOLDER", help="a build for the CPU, into this folder")
    options = parser.parse_args(arguments)
    return rehearse(options.rehearse) if options.rehearse else install(options.architecture, options.bounded_waits)


def install(architecture: str, bounded_waits: bool = False) -> int:
    wanted = {"sources": sources(BUILT), "architecture": architecture, "bounded waits": bounded_waits, "python": sys.version}
    if installed() == wanted:
        print(f"installed already from sources {wanted['sources']} for {architecture}")
    else:
        if lacking := missing():
            print("cannot build: " + "; ".join(lacking))
            return 1
        switches = {"XLSTM_SELFTEST": "ON", "XLSTM_CUDA": "ON", "XLSTM_SIMT": "OFF", "CUDAARCHS": architecture}
        switches["XLSTM_BOUNDED_WAITS"] = "ON" if bounded_waits else "OFF"
        if status := build(switches, ROOT / "build/gpu" / architecture):
            return status
        if place := module():
            stamp = {**wanted, "module": digest(place)}
            (place.parent / STAMP).write_text(json.dumps(stamp) + "\n")
    return report(REPORT + USABLE)


def rehearse(folder: Path) -> int:
    """An installed package is taken as it is; without one, a build for the CPU shows that this machine could install."""
    if importable():
        return report(REPORT)
    if lacking := missing(nvcc=False):
        print("the package is not installed and cannot be built here: " + "; ".join(lacking))
        return CANNOT_BE_REHEARSED
    switches = {"XLSTM_CUDA": "OFF", "XLSTM_SIMT": "OFF", "XLSTM_SELFTEST": "OFF"}
    return build(switches, folder.with_name("cmake"), "--target", str(folder), "--upgrade") or report(REPORT)


def build(switches: dict[str, str], build_folder: Path, *more: str) -> int:
    """pip's exit status. Offline: no isolation, no dependencies. Options of pip 22 alone, which a venv of Debian has."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--config-settings", f"build-dir={build_folder}", *more, "."]
    print(*(f"{name}={value}" for name, value in switches.items()), *command, flush=True)
    started = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **switches}).returncode
    print(f"pip: exit status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status


def missing(nvcc: bool = True) -> list[str]:
    """What a build needs and this machine lacks."""
    found = [f"no Python package {name}" for module, name in BUILDS_WITH.items() if importlib.util.find_spec(module) is None]
    found += ["no pip"] if importlib.util.find_spec("pip") is None else []
    for program in ("cmake", "ninja"):
        if shutil.which(program) is None and importlib.util.find_spec(program) is None:
            found.append(f"no {program}")
    if nvcc and tool("nvcc") is None:
        found.append("no nvcc on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin")
    return found


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on PATH or where the toolkit usually is."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which(name) or next((path for home in homes if (path := shutil.which(name, path=str(home / "bin")))), None)


def module() -> Path | None:
    """The installed _C, found without importing the package."""
    try:
        files = importlib.metadata.distribution("xlstm_cuda").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name.startswith("_C.") and file.name.endswith(".so"))
    return next((path for path in found if path.is_file()), None)


def installed() -> dict[str, str] | None:
    """What the installed module was built from; None without one, or when it is not the one that was stamped."""
    place = module()
    try:
        stamp = json.loads((place.parent / STAMP).read_text()) if place else None
        return stamp if place and stamp and stamp.pop("module") == digest(place) else None
    except (OSError, ValueError, KeyError):
        return None


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def importable() -> bool:
    return subprocess.run([sys.executable, "-c", "import xlstm_cuda"], cwd=ROOT, capture_output=True).returncode == 0


def report(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
