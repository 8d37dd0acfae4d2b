"""Seeded bugs in the chunkwise mLSTM; the suite must turn red for each: `python python_tests/mlstm_mutants.py [--only TEXT]`.

Works on a copy of the checkout: plants one bug, rebuilds the host executor's module where C++ changed, runs the tests below and
expects a failure. Python and the CUDA headers are those that build XLSTM_SIMT=ON.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNELS = "xlstm_cuda/ops/mlstm_kernels.py"
WALK, TILE, SCORES, STATE, PRODUCT, CONTAINMENT = (
    f"csrc/mlstm/walk{part}.cuh" for part in ("", "_tile", "_scores", "_state", "_product", "_containment")
)
GATES = "csrc/mlstm/gates.cu"
GRADIENTS = "dQ, dK, dV = dQ[..., :DHQK].contiguous(), dK[..., :DHQK].contiguous(), dV[..., :DHHV].contiguous()\n"


def scaled(name: str) -> tuple[str, str, str]:
    return KERNELS, GRADIENTS, f"{GRADIENTS}    {name} = {name} * 0.98\n"


MUTANTS: dict[str, tuple[str, str, str]] = {
    **{f"{name} x 0.98": scaled(name) for name in ("dQ", "dK", "dV", "di", "df", "dC0", "dn0", "dm0")},
    "normaliser gradient dropped": (KERNELS, "if exact and options.normalize:", "if False:"),
    "dn0 zeroed": (KERNELS, GRADIENTS, f"{GRADIENTS}    dn0 = dn0 * 0\n"),
    "df without the state term": (KERNELS, "border = None if dfinal is None else", "border = None if True else"),
    "last token unmasked": (SCORES, "j <= t && float(j) >= start.x", "j <= t + 1 && float(j) >= start.x"),
    "reset seen through": (SCORES, "j <= t && float(j) >= start.x", "j <= t"),
    "barrier after P removed": (WALK, "__syncthreads();  // P is complete; A is free", ""),
    "barrier before the chunk removed": (WALK, "__syncthreads();  // chunk k is here; everyone has left the chunk before", ""),
    "wait removed": (WALK, "device::cp_async_wait<0>();\n    __syncthreads();", "__syncthreads();"),
    "wrong stage": (WALK, "load_rest(chunk_at(step + 1), stage ^ 1)", "load_rest(chunk_at(step + 1), stage)"),
    "ldmatrix of X without .trans": (PRODUCT, "device::ldmatrix_x4_trans(x[mo]", "device::ldmatrix_x4(x[mo]"),
    "tail rows unmasked": (TILE, "i * kRowsAtOnce < left ? 16 : 0", "16"),
    "tail records unmasked": (GATES, "real && !fresh ? row.r", "!fresh ? p.scale"),
    "states in 16 bits": (
        STATE,
        "v[0] *= decay, v[1] *= decay;",
        "v[0] = decay * device::low_half<Element>(b[mo][h][x]), v[1] = decay * device::high_half<Element>(b[mo][h][x]);",
    ),
    "m off at chunk borders": (
        GATES,
        "m = m_k == -INFINITY ? 0.0f : float(m_k);",
        "m = m_k == -INFINITY ? 0.0f : float(m_k) - 0.5f;",
    ),
    "low parts of the logarithms dropped": (GATES, "fabsf(high) == INFINITY ? 0.0f : float(x - high)", "0.0f"),
    "NaN of v through the causal zeros": (
        CONTAINMENT,
        "return add_across_causal_zeros(at, chunk, acc, pass, kt, x);",
        "(void)0;",
    ),
}
# Enough to see each bug; the whole files would take minutes per mutant.
TESTS = [
    "python_tests/test_mlstm_kernels.py",
    "python_tests/test_mlstm.py",
    "-k",
    "(simt and ((any_length and (65 or 129)) or (gate_edges and (every or one)) or split_at or (nan_touches and v-simt)"
    " or of_nothing or detached or cu_seqlens or edges_match_reference_in_bfloat16 or keeps_its_state)) or any_schedule",
]


class Copy:
    """A checkout to break."""

    def __init__(self, folder: Path) -> None:
        self.root, self.build = folder / "checkout", folder / "build"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns("build", ".git", "*_trace*.so", "*_asan*.so"))
        pybind = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.run(
            "cmake", "-S", ".", "-B", str(self.build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DXLSTM_CUDA=OFF", "-DXLSTM_SIMT=ON",
            f"-Dpybind11_DIR={pybind}", f"-DPython_EXECUTABLE={sys.executable}",
        )  # fmt: skip
        self.compile("_simt", "_C")

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True)

    def compile(self, *targets: str) -> None:
        self.run("cmake", "--build", str(self.build), "-j2", "--target", *targets)
        for module in self.build.rglob("*.so"):
            shutil.copy(module, self.root / "xlstm_cuda")

    def tests_fail(self, tests: list[str]) -> bool:
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if done.returncode in (2, 3, 4, 5):
            raise SystemExit(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode != 0  # 1, or a signal: a bug may crash the executor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    only, missed = parser.parse_args().only, []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        if copy.tests_fail(TESTS):
            print("the tests fail without any bug")
            return 1
        for name, (file, old, new) in MUTANTS.items():
            if only not in name:
                continue
            path, started = copy.root / file, time.perf_counter()
            source = path.read_text()
            assert source.count(old) == 1, f"{name}: the text to replace occurs {source.count(old)} times"
            path.write_text(source.replace(old, new))
            if not file.endswith(".py"):
                copy.compile("_simt")
            caught = copy.tests_fail(TESTS)
            path.write_text(source)
            print(f"{name:40} {'red' if caught else 'GREEN: missed'} ({time.perf_counter() - started:.0f} s)", flush=True)
            missed += [] if caught else [name]
        copy.compile("_simt")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
