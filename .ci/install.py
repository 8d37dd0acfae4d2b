"""Installs this checkout for one of the Makefile's commands: `python3 .ci/install.py demo | examples | test | deep`.

Into the active environment (virtual or conda), else into .venv, which is made when it is not there. Nothing is done when the
same sources are installed there already with at least the same parts. A torch that is there stays; a machine without an
NVIDIA GPU, and CI, get the CPU build of torch, which is 2 GB smaller.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "cmake"))
sys.dont_write_bytecode = True  # nothing of this script stays in cmake/

SOURCES = ("CMakeLists.txt", "cmake", "constraints-cpu.txt", "csrc", "pyproject.toml", "xlstm_cuda")
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  #: where PyTorch keeps builds without CUDA
TESTS = ("plot", "test", "peers", "examples")
EXTRAS = {"demo": ("plot",), "examples": ("examples",), "test": TESTS, "deep": TESTS}
SWITCHES = {"demo": (), "examples": (), "test": ("XLSTM_SIMT",), "deep": ("XLSTM_SIMT", "XLSTM_SIMT_ASAN")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("purpose", choices=EXTRAS)
    purpose = parser.parse_args().purpose
    if sys.version_info < (3, 10):  # noqa: UP036  run by whatever python3 there is
        version = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(
            f"xlstm_cuda needs Python 3.10 or newer, got {version} ({sys.executable}): make {purpose} PYTHON=python3.12"
        )
    environment = active_environment() or make_environment()
    python = environment / "bin" / "python"
    wanted = wanted_parts(purpose)
    stamp = environment / "xlstm_cuda-installed.json"
    if is_installed(stamp, python, wanted):
        print(f"xlstm_cuda is installed in {environment}, and its sources have not changed")
        return 0
    print(f"installing xlstm_cuda into {environment}", flush=True)
    started = time.monotonic()
    install(python, wanted)
    stamp.write_text(json.dumps({**wanted, "record": record_of(python)}, indent=1) + "\n")
    print(f"installed in {time.monotonic() - started:.0f} seconds")
    return 0


# ---------------------------------------------------------------- the environment
def active_environment() -> Path | None:
    """The virtual or conda environment that is switched on, if any."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        folder = os.environ.get(variable)
        if folder and (Path(folder) / "bin" / "python").exists():
            return Path(folder)
    return None


def make_environment() -> Path:
    """.venv in the checkout, made when it is not there."""
    folder = ROOT / ".venv"
    if not (folder / "bin" / "python").exists():
        print(f"making the environment {folder}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(folder)]).returncode:
            raise SystemExit("python3 cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv")
    return folder


# ---------------------------------------------------------------- what is wanted, and what is there
def wanted_parts(purpose: str) -> dict[str, object]:
    """The sources by their hash, the extras, and the build switches: those of the purpose, then those of the user."""
    from build_plan import Refused, find_nvcc

    chosen = {name: value for name, value in os.environ.items() if name.startswith("XLSTM_") or name == "CUDAARCHS"}
    switches = dict.fromkeys(SWITCHES[purpose], "ON")
    if SWITCHES[purpose]:
        try:
            find_nvcc()
            switches["XLSTM_PTX"] = "ON"  # the kernels as nvcc compiles them, in the tests' interpreter
        except Refused as refusal:
            print(f"without the PTX interpreter: {refusal}")
    return {"sources": hash_of_sources(), "extras": list(EXTRAS[purpose]), "switches": {**switches, **chosen}}


def hash_of_sources() -> str:
    """Of every file that the installed package depends on."""
    digest = hashlib.sha256()
    for top in SOURCES:
        files = sorted((ROOT / top).rglob("*")) if (ROOT / top).is_dir() else [ROOT / top]
        for file in files:
            if file.is_file() and file.suffix not in (".so", ".pyc"):
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def is_installed(stamp: Path, python: Path, wanted: dict) -> bool:
    """Whether the environment has these sources, these extras and these switches, and nothing has touched it since."""
    try:
        found = json.loads(stamp.read_text())
        return (
            found["sources"] == wanted["sources"]
            and set(found["extras"]) >= set(wanted["extras"])
            and found["switches"].items() >= wanted["switches"].items()
            and found["record"] == record_of(python) != ""
        )
    except (OSError, ValueError, KeyError):
        return False


def record_of(python: Path) -> str:
    """The hash of the list of installed files; empty when the package is not installed."""
    code = "import importlib.metadata as m; print(m.distribution('xlstm_cuda').read_text('RECORD'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=str(python.parent), env=bare())
    return hashlib.sha256(done.stdout.encode()).hexdigest() if done.returncode == 0 else ""


def bare() -> dict:
    """The environment without what would make Python look into the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


# ---------------------------------------------------------------- the installation
def install(python: Path, wanted: dict) -> None:
    if subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode:
        subprocess.run([str(python), "-m", "ensurepip"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "pip", "install", *torch_options(python, Path(folder))]
        command.append(f"{ROOT}[{','.join(wanted['extras'])}]")
        print("$", " ".join(command[1:]), flush=True)
        if status := subprocess.run(command, env={**os.environ, **wanted["switches"]}).returncode:
            raise SystemExit(status)


def torch_options(python: Path, folder: Path) -> list[str]:
    """Options of pip that keep the torch of the environment, or choose the build for this machine."""
    from build_plan import find_gpus

    code = "import importlib.metadata as m; print(m.version('torch'))"
    there = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env=bare())
    if there.returncode == 0:
        constraint = folder / "torch.txt"
        constraint.write_text(f"torch=={there.stdout.strip()}\n")
        return ["-c", str(constraint)]
    if find_gpus() and not os.environ.get("CI"):
        print("torch comes with CUDA, about 3 GB, because nvidia-smi finds a GPU")
        return []
    constraints = ["-c", str(ROOT / "constraints-cpu.txt")]
    asked = [str(python), "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-", *constraints, "torch"]
    report = subprocess.run(asked, capture_output=True, text=True)
    return constraints if '+cpu"' in report.stdout else [*constraints, "--extra-index-url", CPU_TORCH]


if __name__ == "__main__":
    sys.exit(main())
