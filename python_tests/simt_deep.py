"""The executor's slow modes, one after the other: `python python_tests/simt_deep.py`.

    races    the kernel tests with the race detector on, under two schedules; the chunkwise mLSTM in every tile, starved
    asan     the kernel tests on the module built with address and undefined-behaviour checks (XLSTM_SIMT_ASAN=ON)
    cases    300 tensor-core cases
    mutants  seeded bugs against every detection mode

A mode whose module is not in this build is reported as skipped with the reason, and the exit status stays 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNEL_TESTS = [
    "test_mlstm_step_kernel.py",
    "test_simt_primitives.py",
    "test_simt_tile.py",
    "test_slstm_kernels.py",
    "test_slstm_step_kernel.py",
]
CHUNKWISE = [  # of the chunkwise mLSTM, what reads and writes at every border: ragged tails, padded heads, segments, cu_seqlens
    "python_tests/test_mlstm_kernels.py",
    "python_tests/test_mlstm.py",
    "-k",
    "simt and (every_tile_matches or segments or wide_tiles or gate_edges_match_reference_in or any_strides or of_nothing"
    " or (cu_seqlens_equals and state) or (any_head_dim and 1-1) or (nan_touches and 16-nan-v))",
]

SPLIT = ["python_tests/test_slstm_split_kernels.py", "-k", "simt and not race"]


def pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-k", "simt", *arguments, *(f"python_tests/{name}" for name in KERNEL_TESTS)]


def sanitizer_environment() -> dict[str, str]:
    """The libraries must be there before Python: gcc knows where they are."""
    names = ("libasan.so", "libubsan.so")
    found = [subprocess.run(["gcc", f"-print-file-name={n}"], capture_output=True, text=True).stdout.strip() for n in names]
    return {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0", "XLSTM_SIMT_SANITIZE": "1"}


def modes() -> dict[str, tuple[str, list[list[str]], dict[str, str]]]:
    """By name: the compiled module it needs, the commands, the environment."""
    races, bare = {"XLSTM_SIMT_RACES": "1"}, [sys.executable, "-m", "pytest", "-q"]
    without_own_modes = ["-k", "simt and not race and not profile and not moved_once and not reads_R_once"]
    return {
        "races": ("_simt_trace", [pytest(), pytest(), [*bare, "-m", "deep", *CHUNKWISE[:1], "-k", "data_race"]], races),
        "asan": ("_simt_asan", [pytest(*without_own_modes), [*bare, *CHUNKWISE], [*bare, *SPLIT]], sanitizer_environment()),
        "cases": (
            "_simt",
            [[sys.executable, "-m", "pytest", "-q", "-m", "deep", "--durations=1", "python_tests/test_simt_tile.py"]],
            {},
        ),
        "mutants": ("_simt", [[sys.executable, "python_tests/simt_mutants.py"]], {}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", action="append", choices=list(modes()), help="only this one; may be repeated")
    chosen = parser.parse_args().mode
    sys.path.insert(0, str(ROOT))  # the checkout, as in the tests
    failed = []
    for name, (module, commands, settings) in modes().items():
        if chosen and name not in chosen:
            continue
        if importlib.util.find_spec(f"xlstm_cuda.{module}") is None:
            switch = "XLSTM_SIMT_ASAN=ON" if module == "_simt_asan" else "XLSTM_SIMT=ON"
            print(f"{name}: skipped, {module} is not in this build (reinstall with {switch})", flush=True)
            continue
        started = time.monotonic()
        for index, command in enumerate(commands):
            order = {"XLSTM_SIMT_ORDER": ("random", "lifo", "starve")[index]} if len(commands) > 1 else {}
            if subprocess.run(command, cwd=ROOT, env={**os.environ, **settings, **order}).returncode:
                failed.append(name)
        print(f"{name}: {'FAILED' if name in failed else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
