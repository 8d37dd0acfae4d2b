"""Decides what a build of xlstm_cuda will contain, before anything is compiled, and says it in one sentence.

CMakeLists.txt runs this file as a program and obeys its answer; build_backend.py shows the sentence to whoever typed
`pip install`; .ci/release_wheel.py asks it for the targets of a wheel. Only the standard library is used.

XLSTM_CUDA   GPU found       no GPU found
AUTO         its kernels     no kernels, unless CUDAARCHS names targets
ON           its kernels     the kernels of every supported GPU (as in a wheel)
OFF          no kernels      no kernels
CUDAARCHS, or CMAKE_CUDA_ARCHITECTURES, names the targets and wins over what is found.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Version = tuple[int, int]

OLDEST_NVCC: Version = (12, 0)  #: the first with PTX ISA 8.0 and sm_90a, which csrc/device writes
OLDEST_GPU = 80  #: bfloat16 mma and cp.async
OLDEST_GNU, OLDEST_CLANG = 11, 11  #: of the C++ compiler that nvcc calls; Compiler.cmake checks the other one

#: The first nvcc that knows a target; OLDEST_NVCC knows those that are not named here.
FIRST_NVCC: dict[str, Version] = {
    "88": (13, 0), "100": (12, 8), "100a": (12, 8), "100f": (12, 9), "101": (12, 8), "101a": (12, 8), "101f": (12, 9),
    "103": (12, 9), "103a": (12, 9), "103f": (12, 9), "110": (13, 0), "110a": (13, 0), "110f": (13, 0),
    "120": (12, 8), "120a": (12, 8), "120f": (12, 9), "121": (12, 9), "121a": (12, 9), "121f": (12, 9),
}  # fmt: skip

KNOWN_TARGETS = {"80", "86", "87", "89", *FIRST_NVCC}

#: CPU-seconds of nvcc 13.0.88 for all kernels. 90a is the sum over its files; the others follow from it by five files that were
#: compiled for each. `python -m bench.static --compile-only --out FOLDER` measures them all.
KERNEL_SECONDS = {"80": 165, "86": 148, "89": 150, "90a": 174, "100f": 172, "120f": 143, "90-virtual": 139}
#: CPU-seconds of the other parts with g++ 12. The first two are measured; the address checks and nvcc's PTX of two targets are
#: estimates.
CPU_SECONDS, EXECUTOR_SECONDS, ASAN_SECONDS, PTX_SECONDS = 110, 210, 300, 300


class Refused(Exception):
    """This build cannot be made; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: int  #: compute capability without its point: 90 for 9.0


@dataclass(frozen=True)
class Nvcc:
    path: str
    version: Version

    def __str__(self) -> str:
        return f"nvcc {self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class Plan:
    """cuda: whether the CUDA kernels are built, by ``nvcc``, for ``architectures`` (CMake's spelling). sentence: for people."""

    cuda: bool
    sentence: str
    nvcc: str = ""
    architectures: list[str] = field(default_factory=list)


#: By the names that Python and CMake have for a system.
REMEDIES = {
    "Windows": "Windows: install it inside WSL 2, where the Linux instructions and the GPU work",
    "Darwin": "macOS: use a Linux container, where the CPU backend works",
}


def make_plan(switches: Mapping[str, str]) -> Plan:
    """The plan for XLSTM_CUDA, XLSTM_SIMT, XLSTM_SIMT_ASAN, XLSTM_PTX, CUDAARCHS and SYSTEM; Refused where there is none."""
    system = switches.get("SYSTEM", "Linux")
    if system != "Linux":
        raise Refused(f"builds on Linux only, got {REMEDIES.get(system, f'{system}: use a Linux machine or container')}")
    choice = switches.get("XLSTM_CUDA", "AUTO").upper()
    wanted = [target for target in re.split(r"[;,\s]+", switches.get("CUDAARCHS", "")) if target]
    if choice not in ("AUTO", "ON", "OFF"):
        raise Refused(f"XLSTM_CUDA: got {choice!r}, expected AUTO, ON or OFF")
    if choice == "OFF":
        return without_kernels(switches, "XLSTM_CUDA=OFF")
    try:
        nvcc = find_nvcc()
    except Refused as refusal:
        if choice == "ON":
            raise Refused(f"XLSTM_CUDA=ON, but {refusal}") from None
        return without_kernels(switches, str(refusal))
    if wanted and wanted != ["native"]:
        return with_kernels(switches, nvcc, [checked(target, nvcc) for target in wanted], "as CUDAARCHS says")
    gpus = find_gpus()
    if not gpus:
        if wanted:
            raise Refused("CUDAARCHS=native, but nvidia-smi finds no GPU here; name the target, for example CUDAARCHS=90a")
        if choice == "AUTO":
            remedy = "XLSTM_CUDA=ON builds for every supported GPU, CUDAARCHS=90a for one"
            return without_kernels(switches, f"{nvcc} is here, but nvidia-smi finds no GPU; {remedy}")
        return with_kernels(
            switches, nvcc, wheel_targets(nvcc.version), "every supported GPU, because nvidia-smi finds none here"
        )
    able = [gpu for gpu in gpus if gpu.capability >= OLDEST_GPU]
    if not able:
        found = f"{gpus[0].name} has compute capability {dotted(gpus[0].capability)}; the kernels need 8.0 or newer"
        if choice == "ON" or wanted:
            raise Refused(f"{found}; XLSTM_CUDA=OFF installs the CPU backend")
        return without_kernels(switches, found)
    targets = list(dict.fromkeys(target_of(gpu.capability, nvcc.version) for gpu in able))
    return with_kernels(switches, nvcc, targets, ", ".join(dict.fromkeys(gpu.name for gpu in able)))


def without_kernels(switches: Mapping[str, str], reason: str) -> Plan:
    return Plan(False, f"{parts(switches, [])} without CUDA kernels ({reason}); {duration(switches, [])}")


def with_kernels(switches: Mapping[str, str], nvcc: Nvcc, targets: list[str], reason: str) -> Plan:
    names = ", ".join(readable(target) for target in targets)
    sentence = f"{parts(switches, targets)} with CUDA kernels for {names} ({reason}) by {nvcc}; {duration(switches, targets)}"
    return Plan(True, sentence, nvcc.path, targets)


def parts(switches: Mapping[str, str], targets: Sequence[str]) -> str:
    executors = {"XLSTM_SIMT": "the host executor", "XLSTM_PTX": "the PTX interpreter"}
    names = ["the CPU backend", *(name for switch, name in executors.items() if switches.get(switch, "OFF").upper() == "ON")]
    return "builds " + (" and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0])


def duration(switches: Mapping[str, str], targets: Sequence[str]) -> str:
    """How long a build from nothing takes on the cores of this machine."""

    def is_on(switch: str) -> bool:
        return switches.get(switch, "OFF").upper() == "ON"

    seconds = CPU_SECONDS + sum(kernel_seconds(target) for target in targets)
    seconds += EXECUTOR_SECONDS * is_on("XLSTM_SIMT") + ASAN_SECONDS * is_on("XLSTM_SIMT_ASAN") + PTX_SECONDS * is_on("XLSTM_PTX")
    cores = usable_cores()
    wall = seconds / cores
    time = f"{10 * max(1, round(wall / 10))} seconds" if wall < 100 else f"{round(wall / 60)} minutes"
    return f"about {time} on {cores} core{'s' * (cores != 1)}"


def kernel_seconds(target: str) -> int:
    name = target.removesuffix("-real")
    family = name.rstrip("af") + "f"
    return KERNEL_SECONDS.get(name, KERNEL_SECONDS.get(family, max(KERNEL_SECONDS.values())))


def usable_cores() -> int:
    """Of this process, and of its container where that has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # By its path, because importing the package needs torch.
    quota = runpy.run_path(str(ROOT / "xlstm_cuda/cli/sharing.py"))["cpu_quota"]()
    return cores if quota is None else min(cores, math.ceil(quota))


# ---------------------------------------------------------------- the compiler
EMPTY_KERNEL = f"""\
#if defined(__clang__) ? __clang_major__ < {OLDEST_CLANG} : __GNUC__ < {OLDEST_GNU}
#error its C++ compiler is older than g++ {OLDEST_GNU} and clang++ {OLDEST_CLANG}; set CUDAHOSTCXX to a newer one
#endif
__global__ void empty() {{}}
"""


def find_nvcc() -> Nvcc:
    """CUDACXX, else the nvcc of CUDA_HOME, of CUDA_PATH, on PATH, of the usual folders. Refused when there is none that works."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in homes if home]
    search = [*folders, *os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/cuda/bin", "/opt/cuda/bin"]
    path = os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(search))
    if not path:
        raise Refused("no nvcc was found; set CUDA_HOME to the CUDA toolkit, or CUDACXX to its nvcc")
    release = re.search(r"release (\d+)\.(\d+)", output_of([path, "--version"]))
    if not release:
        raise Refused(f"no working nvcc was found: {path} does not tell its version")
    nvcc = Nvcc(path, (int(release[1]), int(release[2])))
    if nvcc.version < OLDEST_NVCC:
        raise Refused(f"{path} is {nvcc}; the kernels need nvcc {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or newer")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.write_text(EMPTY_KERNEL)
        host = ["-ccbin", os.environ["CUDAHOSTCXX"]] if os.environ.get("CUDAHOSTCXX") else []
        command = [path, *host, f"-arch=sm_{OLDEST_GPU}", "-std=c++17", "-c", str(source), "-o", f"{source}.o"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise Refused(f"no working nvcc was found: {path}: {error.strerror}") from None
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        said = next((line for line in lines if "error" in line), lines[-1])
        raise Refused(f"no working nvcc was found: {path} ({nvcc}) cannot compile an empty kernel: {said.strip()}")
    return nvcc


def checked(target: str, nvcc: Nvcc) -> str:
    """A target of CUDAARCHS in the spelling that CMake gets; Refused when the kernels or this nvcc do not know it."""
    if target in ("all", "all-major"):
        raise Refused(
            f"CUDAARCHS: got {target!r}, which holds targets below sm_{OLDEST_GPU}; leave it unset, or name targets: 80;86;90a"
        )
    found = re.fullmatch(r"((\d+)[af]?)(-real|-virtual)?", target)
    if not found:
        raise Refused(f"CUDAARCHS: got {target!r}, expected numbers such as 80, 86-real, 90a or 90-virtual, or native")
    name, number, kind = found[1], int(found[2]), found[3] or ""
    if number < OLDEST_GPU:
        raise Refused(
            f"CUDAARCHS: got {target!r}, expected sm_{OLDEST_GPU} or newer (the kernels use bfloat16 tensor cores and cp.async)"
        )
    first = FIRST_NVCC.get(name, OLDEST_NVCC)
    if nvcc.version < first:
        raise Refused(f"CUDAARCHS: got {target!r}, which {nvcc} does not know; nvcc {first[0]}.{first[1]} is the first that does")
    return "90a-real" if name == "90" and kind != "-virtual" else target  # wgmma and setmaxnreg need the "a" target


def wheel_targets(version: Version) -> list[str]:
    """Every supported GPU as far as this nvcc knows it, and PTX for those that come later."""
    targets = ["80-real", "86-real", "89-real", "90a-real"]
    targets += ["100f-real", "120f-real"] if version >= (12, 9) else ["100-real", "120-real"] if version >= (12, 8) else []
    return [*targets, "90-virtual"]


# ---------------------------------------------------------------- the GPUs
def find_gpus() -> list[Gpu]:
    """The GPUs of this machine as nvidia-smi tells them; empty without a driver."""
    lines = output_of(["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]).splitlines()
    found = [re.fullmatch(r"\s*(\d+)\.(\d)\s*,\s*(.+?)\s*", line) for line in lines]
    return [Gpu(line[3], 10 * int(line[1]) + int(line[2])) for line in found if line]


def target_of(capability: int, version: Version) -> str:
    """The target for a GPU: its own, else the first of its generation, else PTX that the driver compiles at the first use."""
    if capability == 90:
        return "90a-real"
    family = {100: "100f", 103: "100f", 120: "120f", 121: "120f"}.get(capability)
    for name in (family, str(capability), family and family[:-1]):
        if name in KNOWN_TARGETS and version >= FIRST_NVCC.get(name, OLDEST_NVCC):
            return f"{name}-real"
    return "90-virtual" if capability > 90 else "80-virtual"


def readable(target: str) -> str:
    name = target.removesuffix("-real")
    return f"PTX of compute_{name.removesuffix('-virtual')}" if name.endswith("-virtual") else f"sm_{name}"


def dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def output_of(command: Sequence[str]) -> str:
    """What a program prints; empty when it is not there, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prints the plan as JSON; with an error in it when there is none.")
    parser.add_argument("switches", nargs="*", help="NAME=VALUE; the environment gives what is not named here")
    switches = dict(os.environ) | dict(one.split("=", 1) for one in parser.parse_args(arguments).switches)
    try:
        plan = make_plan(switches)
        print(json.dumps(asdict(plan) | {"architectures": ";".join(plan.architectures), "error": ""}))
    except Refused as refusal:
        print(json.dumps({"error": str(refusal)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
