"""What the CUDA compiler says about every kernel, without a GPU: `python -m bench.static_report`.

Compiles every kernel file, and the test kernels that use every function of csrc/device, for every architecture of the default
list, assembles them, and prints registers, spills and shared memory per kernel; where cuobjdump and nvdisasm are found (CUDA
toolkit, or the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm) also the tensor-core and FFMA instructions. Fails on a
compiler or assembler warning, and on a walk of the mLSTM or a resident kernel of the sLSTM in 16 bits without tensor-core
instructions.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("80", "86", "89", "90a", "100f", "120f", "90-virtual")  # cmake/FindNvcc.cmake's default list


@dataclass(frozen=True)
class Kernel:
    file: str
    architecture: str
    name: str
    registers: int
    shared: int
    stack: int
    spill_bytes: int
    hmma: int = -1  # instructions in the SASS; -1: not looked at
    ffma: int = -1


def find_nvcc() -> str:
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"):
        if folder and (Path(folder) / "bin/nvcc").exists():
            return str(Path(folder) / "bin/nvcc")
    found = shutil.which("nvcc")
    if not found:
        raise SystemExit("static-report needs nvcc: set CUDA_HOME to a CUDA toolkit")
    return found


def find_cuobjdump() -> str | None:
    wheel = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump"), None)
    toolkit = Path(find_nvcc()).with_name("cuobjdump")
    return str(toolkit) if toolkit.exists() else shutil.which("cuobjdump") or (str(wheel) if wheel else None)


def instructions(cuobjdump: str, binary: Path) -> dict[str, tuple[int, int]]:
    """HMMA and FFMA instructions of every kernel in the SASS, by demangled name."""
    environment = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ['PATH']}"}  # it calls nvdisasm
    text = subprocess.run([cuobjdump, "-sass", str(binary)], capture_output=True, text=True, env=environment).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        words = re.findall(r"\b(HMMA|FFMA)\b", part)
        found[demangle(part.split()[0])] = words.count("HMMA"), words.count("FFMA")
    return found


def kernel_files() -> list[Path]:
    """XLSTM_KERNELS and XLSTM_SELFTEST_KERNELS of CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    lists = re.findall(r"set\(XLSTM_(?:SELFTEST_)?KERNELS\s([^)]*)\)", text)
    return [ROOT / name for names in lists for name in names.split()]


def compile_one(
    nvcc: str, cuobjdump: str | None, file: Path, architecture: str, work: Path
) -> tuple[str, str, dict[str, tuple[int, int]]]:
    """Compiles to a cubin (or PTX); returns the compiler's words, an error (empty where it succeeded), and `instructions`."""
    out = work / f"{file.stem}_{architecture}.o"
    if architecture.endswith("-virtual"):
        number = architecture.removesuffix("-virtual")
        target = f"arch=compute_{number},code=compute_{number}"
    else:
        target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        f"-I{ROOT / 'csrc'}",
        "-gencode",
        target,
        "-Xptxas=-v,--warn-on-spills",
        "-c",
        str(file),
    ]
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
    text = done.stdout + done.stderr
    if done.returncode:
        return text, text, {}
    return text, "", instructions(cuobjdump, out) if cuobjdump and not architecture.endswith("-virtual") else {}


def parse(text: str, file: Path, architecture: str) -> list[Kernel]:
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)",
        re.S,
    )
    for mangled, stack, stores, loads, registers, rest in pattern.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        name = demangle(mangled)
        size = int(shared[1]) if shared else 0
        kernels.append(Kernel(file.name, architecture, name, int(registers), size, int(stack), int(stores) + int(loads)))
    return kernels


def demangle(name: str) -> str:
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() if shutil.which("c++filt") else name
    text = re.sub(r"\(anonymous namespace\)::|xlstm::", "", text)
    text = re.sub(r"\([\w:]+\)(\d+)", r"\1", text)  # template arguments: (bool)1, (mlstm::WalkUse)0
    return re.sub(r"^void |\(.*\)$", "", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", action="append", help="only this architecture, such as 90a; may be repeated")
    parser.add_argument("--files", default="", help="only kernel files whose path contains this")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    nvcc, cuobjdump, started = find_nvcc(), find_cuobjdump(), time.perf_counter()
    jobs = [(f, a) for f in kernel_files() for a in arguments.arch or ARCHITECTURES if arguments.files in str(f)]
    problems: list[str] = []
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda job: compile_one(nvcc, cuobjdump, *job, Path(folder)), jobs)
        for (file, architecture), (text, error, counts) in zip(jobs, results):
            warnings = [line for line in text.splitlines() if re.search(r"warning|ptxas (error|fatal)", line, re.I)]
            problems += [f"{file.name} for {architecture}: {line}" for line in ([error] if error else warnings)]
            for kernel in parse(text, file, architecture):
                hmma, ffma = counts.get(kernel.name, (-1, -1))
                kernels.append(replace(kernel, hmma=hmma, ffma=ffma))
                tensor_cores = re.search(r"walk_kernel|(resident|grid|cluster)_\w+_kernel<.*(bfloat16|half)", kernel.name)
                empty = "cluster_" in kernel.name and architecture.startswith("8")  # clusters came with sm_90
                if hmma == 0 and tensor_cores and not empty:
                    problems.append(f"{file.name} for {architecture}: no tensor-core instruction in {kernel.name}")
    print(f"{'file':24} {'arch':10} {'registers':>9} {'spill B':>7} {'stack B':>7} {'smem B':>7} {'HMMA':>5} {'FFMA':>5}  kernel")
    for k in sorted(kernels, key=lambda k: (k.file, k.name, k.architecture)):
        print(
            f"{k.file:24} {k.architecture:10} {k.registers:9} {k.spill_bytes:7} {k.stack:7} {k.shared:7}"
            f" {k.hmma:5} {k.ffma:5}  {k.name}"
        )
    spilled = sum(k.spill_bytes > 0 for k in kernels)
    seconds = time.perf_counter() - started
    print(f"\n{len(jobs)} compilations, {len(kernels)} kernels, {spilled} with spills, {len(problems)} problems, {seconds:.0f} s")
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
