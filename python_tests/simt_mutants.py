"""Seeded bugs in a tensor-core kernel x the executor's ways of finding them: `python python_tests/simt_mutants.py`.

Plants one bug at a time in csrc/simt/selftest/mlstm_tile.cu, builds it plain, instrumented and with address checks, and prints
which mode catches it and how: value (wrong numbers), error (the executor raised), race, asan, crash, or - (missed). Fails when a
bug is caught neither by the default mode (random schedule, late copies; any of five seeds) nor by the race detector.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNEL = ROOT / "csrc/simt/selftest/mlstm_tile.cu"
FIFO, REVERSE, LIFO, RANDOM = range(4)
LATE, EARLY = range(2)

MUTANTS: dict[str, tuple[str, str]] = {
    "missing barrier at loop end (WAR)": (
        "    __syncthreads();  // everyone is done with this stage before it is refilled\n",
        "",
    ),
    "missing barrier after cp.async wait (RAW)": (
        "    device::cp_async_wait<1>();\n    __syncthreads();\n",
        "    device::cp_async_wait<1>();\n",
    ),
    "missing cp_async_wait": ("    device::cp_async_wait<1>();\n", ""),
    "wait for one group too few": ("cp_async_wait<1>", "cp_async_wait<2>"),
    "missing commit of the prefetch": ("+ kKeys, S);\n    device::cp_async_commit();", "+ kKeys, S);"),
    "prefetch into the stage in use": ("load_stage(s, stage ^ 1, k", "load_stage(s, stage, k"),
    "ldmatrix of k with lanes swapped": ("b_row = device::b_ldmatrix_row(lane)", "b_row = device::a_ldmatrix_row(lane)"),
    "ldmatrix of v without .trans": ("ldmatrix_x4<device::kTransposed>", "ldmatrix_x4"),
    "row maximum over lanes 1 and 4": (
        "largest[r] = fmaxf(largest[r], __shfl_xor_sync(device::kAllLanes, largest[r], 2))",
        "largest[r] = fmaxf(largest[r], __shfl_xor_sync(device::kAllLanes, largest[r], 4))",
    ),
    "tail rows read past the input": ("int64_t(row < S ? row : 0) * D + c, row < S ? 16 : 0", "int64_t(row) * D + c, 16"),
    "tail rows written past the output": ("    if (row[r] >= S) continue;\n", ""),
    "shared memory one row short at launch": (
        "config.shared_bytes = sizeof(Shared);",
        "config.shared_bytes = sizeof(Shared) - 256;",
    ),
    "barrier inside a divergent branch": (
        "    if (j + 1 < stages) load_stage",
        "    if (threadIdx.x < 96) __syncthreads();\n    if (j + 1 < stages) load_stage",
    ),
}
VARIANTS = {
    "plain": ["-O2"],
    "trace": ["-O2", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"],
    "asan": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


def cuda_headers() -> str:
    wheel = Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13/include"
    for folder in (os.environ.get("XLSTM_CUDA_HEADERS", ""), "/usr/local/cuda/include", str(wheel)):
        if folder and (Path(folder) / "cuda_bf16.h").exists():
            return folder
    raise SystemExit("cuda_bf16.h was not found; set XLSTM_CUDA_HEADERS")


class Builder:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.compiler = ["g++", "-std=c++17", "-w", "-g1", f"-I{ROOT / 'csrc'}", "-isystem", cuda_headers()]

    def compile(self, source: Path, flags: list[str], name: str) -> Path:
        out = self.work / f"{name}.o"
        subprocess.run([*self.compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(out)], check=True)
        return out

    def executor(self, variant: str) -> list[Path]:
        """The executor's objects for a variant: instrumented only by the address checks, which follow fibers."""
        flags = {"plain": ["-O2"], "trace": ["-O2", "-DXLSTM_SIMT_INSTRUMENTED"], "asan": ["-O2", "-fsanitize=address"]}[variant]
        sources = [p for p in sorted((ROOT / "csrc/simt").glob("*.cpp")) if p.name not in ("bind_executor.cpp", "module.cpp")]
        sources.append(ROOT / "csrc/simt/selftest/tile_check.cpp")
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda p: self.compile(p, flags, f"{variant}_{p.stem}"), sources))

    def program(self, kernel: Path, variant: str, objects: list[Path]) -> Path:
        out = self.work / f"tile_{variant}"
        main = self.compile(kernel, VARIANTS[variant], f"kernel_{variant}")
        link = ["-fsanitize=address,undefined"] if variant == "asan" else []
        subprocess.run(["g++", *map(str, [main, *objects]), *link, "-pthread", "-ldl", "-o", str(out)], check=True)
        return out


def run(program: Path, order: int, seed: int = 1, landing: int = LATE, races: bool = False) -> str:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    arguments = [str(program), str(order), str(seed), str(landing), str(int(races))]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    if done.returncode == 0:
        return "-"
    if "AddressSanitizer" in text or "runtime error" in text:
        return "asan"
    if done.returncode == 2:
        return "race" if "data race" in text else "error"
    return "value" if done.returncode == 1 else "crash"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    only = parser.parse_args().only
    source = KERNEL.read_text()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        builder = Builder(work)
        objects = {variant: builder.executor(variant) for variant in VARIANTS}
        columns = f"{'fifo':6} {'revers':6} {'lifo':6} {'random':6} {'early':6} {'races':6} {'asan':6}"
        print(f"{'bug':44} {columns} caught by", flush=True)
        for name, (old, new) in {"(none)": ("", ""), **MUTANTS}.items():
            if only not in name:
                continue
            assert source.count(old) == 1 or not old, f"{name}: the text to replace occurs {source.count(old)} times"
            kernel = work / "mlstm_tile.cu"
            kernel.write_text(source.replace(old, new) if old else source)
            plain, trace, asan = (builder.program(kernel, v, objects[v]) for v in VARIANTS)
            by_order = [run(plain, order) for order in (FIFO, REVERSE, LIFO)]
            seeds = [run(plain, RANDOM, seed) for seed in range(1, 6)]
            hits = sum(found != "-" for found in seeds)
            early, races, checked = run(plain, RANDOM, landing=EARLY), run(trace, RANDOM, races=True), run(asan, RANDOM)
            modes = ["default"] * (hits > 0) + ["races"] * (races != "-") + ["asan"] * (checked != "-")
            row = [*by_order, f"{hits}/5", early, races, checked]
            print(f"{name:44} " + " ".join(f"{x:6}" for x in row) + " " + ", ".join(modes), flush=True)
            if name == "(none)":
                if modes:
                    missed.append("false alarm on the correct kernel")
            elif not {"default", "races"} & set(modes):
                missed.append(name)
    for name in missed:
        print(f"MISSED: {name}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
