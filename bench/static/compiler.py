"""One kernel file through nvcc for one architecture: registers, spills, shared memory, and the instructions in the SASS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .sources import ROOT, key

ARCHITECTURES = ("90a", "80", "86", "89", "100f", "120f", "90-virtual")  # those of a wheel: wheel_targets in cmake/build_plan.py
INSTRUCTIONS = ("HMMA", "HGMMA", "FFMA")


@dataclass(frozen=True)
class Kernel:
    """Figures of one instantiation; instructions -1: not looked at (PTX, or no cuobjdump)."""

    name: str
    registers: int
    shared: int
    stack: int
    spill_bytes: int
    hmma: int = -1
    hgmma: int = -1
    ffma: int = -1


def compile_one(nvcc: str, cuobjdump: str | None, file: str, architecture: str, work: Path) -> dict[str, Any]:
    """The unit's record: key, CPU seconds of nvcc, problems (errors and warnings), kernels."""
    out = work / f"{file.replace('/', '_')}_{architecture}.o"
    virtual = architecture.endswith("-virtual")
    number = architecture.removesuffix("-virtual")
    target = f"arch=compute_{number},code={'compute' if virtual else 'sm'}_{number}"
    command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-gencode", target, "-Xptxas=-v,--warn-on-spills", "-c"]
    found = key(file)
    text, status, seconds = run([*command, str(ROOT / file), "-o", str(out)])
    lines = [line for line in text.splitlines() if "Registers are spilled" not in line]  # the kernels' own figure
    problems = [line for line in lines if re.search(r"warning|error|fatal", line, re.I)]
    if status and not problems:
        problems = [f"nvcc: exit status {status}"]
    counts = instructions(cuobjdump, out) if cuobjdump and not virtual and not status else {}
    kernels = [asdict(kernel) | counts.get(kernel.name, {}) for kernel in parse(text)]
    out.unlink(missing_ok=True)
    return {"key": found, "seconds": round(seconds, 1), "problems": problems, "kernels": kernels}


def run(command: list[str]) -> tuple[str, int, float]:
    """What a program says, its exit status, and the CPU seconds of it and of the programs that it called."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as stream:
        text = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return text, process.returncode, usage.ru_utime + usage.ru_stime


def parse(text: str) -> list[Kernel]:
    """The kernels in what ptxas says."""
    pattern = re.compile(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)",
        re.S,
    )
    kernels = []
    for mangled, stack, stores, loads, registers, rest in pattern.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        size = int(shared[1]) if shared else 0
        kernels.append(Kernel(demangle(mangled), int(registers), size, int(stack), int(stores) + int(loads)))
    return kernels


def instructions(cuobjdump: str, binary: Path) -> dict[str, dict[str, int]]:
    """How often each of INSTRUCTIONS stands in the SASS of every kernel, by demangled name."""
    environment = {**os.environ, "PATH": f"{Path(cuobjdump).parent}{os.pathsep}{os.environ['PATH']}"}  # it calls nvdisasm
    text = subprocess.run([cuobjdump, "-sass", str(binary)], capture_output=True, text=True, env=environment).stdout
    found = {}
    for part in text.split("Function : ")[1:]:
        words = re.findall(rf"\b({'|'.join(INSTRUCTIONS)})\b", part)
        found[demangle(part.split()[0])] = {name.lower(): words.count(name) for name in INSTRUCTIONS}
    return found


def demangle(name: str) -> str:
    text = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() if shutil.which("c++filt") else name
    text = re.sub(r"\(anonymous namespace\)::|xlstm::", "", text)
    text = re.sub(r"\([\w:]+\)(\d+)", r"\1", text)  # template arguments: (bool)1, (mlstm::WalkUse)0
    return re.sub(r"^void |\(.*\)$", "", text)


def find_nvcc() -> str:
    """nvcc of CUDA_HOME, of the usual places or on PATH; SystemExit without one."""
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"):
        if folder and (Path(folder) / "bin/nvcc").exists():
            return str(Path(folder) / "bin/nvcc")
    if found := shutil.which("nvcc"):
        return found
    raise SystemExit("static-report needs nvcc: set CUDA_HOME to a CUDA toolkit")


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found[1] if found else "unknown"


def find_cuobjdump() -> str | None:
    """Of the toolkit, on PATH, or of the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    wheel = next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump"), None)
    toolkit = Path(find_nvcc()).with_name("cuobjdump")
    return str(toolkit) if toolkit.exists() else shutil.which("cuobjdump") or (str(wheel) if wheel else None)
