"""What the build promises: CUDA is optional and never a surprise, no libtorch, no dynamic CUDA library, no stale module.

The plan of a build (cmake/build_plan.py) is tested with programs named nvcc and nvidia-smi that only print, so no GPU and no
CUDA toolkit is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_cuda import native

ROOT = Path(__file__).parents[1]
CSRC = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
sys.path.insert(0, str(ROOT / "cmake"))
import build_plan  # noqa: E402
from build_plan import Refused, make_plan  # noqa: E402

H100, A100, RTX_4090, RTX_2080 = "9.0, NVIDIA H100", "8.0, NVIDIA A100", "8.9, NVIDIA RTX 4090", "7.5, NVIDIA RTX 2080"
EVERY_TARGET = ["80-real", "86-real", "89-real", "90a-real", "100f-real", "120f-real", "90-virtual"]

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")


class Machine:
    """An environment with a fake nvcc and a fake nvidia-smi; what is real otherwise stays in reach."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLSTM", "CUDA"))}
        self.environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.gpus()

    def program(self, name: str, script: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def nvcc(self, version: str = "13.0", compile: str = "exit 0") -> None:
        """One that tells a version; ``compile`` is what it does with a source."""
        script = (
            f'case "$*" in *--version*) echo "Cuda compilation tools, release {version}, V{version}.88";; *) {compile};; esac'
        )
        self.environment["CUDACXX"] = str(self.program("nvcc", script))

    def no_nvcc(self) -> None:
        self.environment["CUDACXX"] = "/nonexistent/nvcc"

    def gpus(self, *lines: str) -> None:
        """What nvidia-smi prints; without lines it fails, as it does without a driver."""
        shown = "\n".join(lines)
        self.program("nvidia-smi", f'echo "{shown}"' if lines else "echo 'NVIDIA-SMI has failed'; exit 9")

    def configure(self, *switches: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """CMake's configuration alone; ``said`` is all it printed, in one line."""
        pybind11 = pytest.importorskip("pybind11", reason="pip install 'xlstm_cuda[test]'")
        return subprocess.run(
            ["cmake", "-S", str(ROOT), "-B", str(self.folder / "build"), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
             f"-DPython_EXECUTABLE={sys.executable}", *switches],
            capture_output=True, text=True, env=self.environment | environment,
        )  # fmt: skip


def said(result: subprocess.CompletedProcess[str]) -> str:
    """All that was printed, in one line: CMake wraps long errors."""
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The fake machine, also for calls inside this process."""
    made = Machine(tmp_path)
    made.nvcc()
    for name in [name for name in os.environ if name.startswith(("XLSTM", "CUDA"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", made.environment["PATH"])
    return made


# ---------------------------------------------------------------- which GPUs
@pytest.mark.parametrize("choice", ["AUTO", "ON"])
@pytest.mark.parametrize(
    "lines,targets",
    [
        ([H100], ["90a-real"]),
        ([H100, H100], ["90a-real"]),
        ([A100, RTX_4090], ["80-real", "89-real"]),
        ([RTX_2080, A100], ["80-real"]),
        (["8.6, A10"], ["86-real"]),
        (["8.8, Some"], ["88-real"]),
        (["10.0, B200"], ["100f-real"]),
        (["10.3, B300"], ["100f-real"]),
        (["11.0, Thor"], ["110-real"]),
        (["12.0, RTX 5090"], ["120f-real"]),
        (["12.1, GB10"], ["120f-real"]),
        (["13.0, Later"], ["90-virtual"]),
    ],
    ids=lambda value: "+".join(line.split(",")[0] for line in value),
)
def test_plan_builds_for_the_gpus_of_the_machine(machine, choice, lines, targets):
    machine.gpus(*lines)
    plan = make_plan({"XLSTM_CUDA": choice})
    assert plan.cuda and plan.architectures == targets
    assert lines[-1].split(", ")[1] in plan.sentence and "nvcc 13.0" in plan.sentence


#: nvcc -> what it builds for a GPU of this compute capability.
TARGETS_OF_NVCC = {
    "12.0": {"9.0": "90a-real"},
    "12.4": {"10.0": "90-virtual"},
    "12.8": {"10.0": "100-real", "10.3": "100-real", "12.0": "120-real", "12.1": "120-real"},
    "12.9": {"10.3": "100f-real", "12.0": "120f-real", "8.8": "80-virtual"},
}


@pytest.mark.parametrize(
    "version,capability,target",
    [(version, *pair) for version, targets in TARGETS_OF_NVCC.items() for pair in targets.items()],
)
def test_plan_knows_what_each_nvcc_knows(machine, version, capability, target):
    machine.nvcc(version)
    machine.gpus(f"{capability}, A GPU")
    assert make_plan({"XLSTM_CUDA": "ON"}).architectures == [target]


def test_plan_without_a_gpu_leaves_the_kernels_out_or_builds_all_of_them(machine):
    left_out = make_plan({})
    assert not left_out.cuda and "without CUDA kernels" in left_out.sentence
    assert "nvidia-smi finds no GPU; XLSTM_CUDA=ON builds for every supported GPU, CUDAARCHS=90a for one" in left_out.sentence
    everything = make_plan({"XLSTM_CUDA": "ON"})
    assert everything.architectures == EVERY_TARGET == build_plan.wheel_targets((13, 0))
    assert "every supported GPU, because nvidia-smi finds none here" in everything.sentence


@pytest.mark.parametrize(
    "version,blackwell", [((12, 6), []), ((12, 8), ["100-real", "120-real"]), ((12, 9), ["100f-real", "120f-real"])]
)
def test_wheel_has_blackwell_as_far_as_nvcc_knows_it(version, blackwell):
    assert build_plan.wheel_targets(version) == ["80-real", "86-real", "89-real", "90a-real", *blackwell, "90-virtual"]


@pytest.mark.parametrize("choice", ["AUTO", "ON"])
@pytest.mark.parametrize("gpus", [[], [A100]], ids=["no GPU", "another GPU"])
def test_cudaarchs_wins(machine, choice, gpus):
    machine.gpus(*gpus)
    plan = make_plan({"XLSTM_CUDA": choice, "CUDAARCHS": "86-real;90 , 90-virtual"})
    assert plan.cuda and plan.architectures == ["86-real", "90a-real", "90-virtual"]
    assert "as CUDAARCHS says" in plan.sentence


def test_cudaarchs_on_a_machine_without_nvcc_is_no_error(machine, monkeypatch):
    """As in CI, which names a target whether or not the machine has a toolkit."""
    monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
    plan = make_plan({"CUDAARCHS": "90a-real"})
    assert not plan.cuda and "no working nvcc was found" in plan.sentence


def test_cudaarchs_native_means_the_gpus_of_the_machine(machine):
    with pytest.raises(Refused, match="CUDAARCHS=native, but nvidia-smi finds no GPU here"):
        make_plan({"CUDAARCHS": "native"})
    machine.gpus(H100)
    assert make_plan({"CUDAARCHS": "native"}).architectures == ["90a-real"]


@pytest.mark.parametrize("target", [*EVERY_TARGET[:-1], "100-real"])
def test_one_architecture_takes_at_most_a_quarter_of_all(target):
    assert 4 * build_plan.kernel_seconds(target) <= sum(map(build_plan.kernel_seconds, EVERY_TARGET))


def test_the_page_gives_the_seconds_that_the_plan_counts_with():
    page = (ROOT / "docs/install.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (\w+)(?: \([^)]*\))? \| (\d+) \|$", page, re.M)
    table = {target: int(seconds) for target, seconds in rows}
    table["90-virtual"] = int(re.search(r"and PTX \((\d+)\) \|", page)[1])
    assert table == build_plan.KERNEL_SECONDS
    assert f"| {sum(table.values()):,} |" in page
    assert f"takes {build_plan.CPU_SECONDS} CPU-seconds more" in page and f"need) {build_plan.EXECUTOR_SECONDS}." in page


def test_plan_says_how_long_it_takes(machine, monkeypatch):
    monkeypatch.setattr(build_plan, "usable_cores", lambda: 2)
    off = make_plan({"XLSTM_CUDA": "OFF"}).sentence
    assert re.search(r"about \d+ seconds on 2 cores$", off)
    one = make_plan({"CUDAARCHS": "90a"}).sentence
    both = make_plan({"CUDAARCHS": "90a", "XLSTM_SIMT": "ON"}).sentence
    minutes = [int(re.search(r"about (\d+) minutes on 2 cores$", sentence)[1]) for sentence in (one, both)]
    assert 2 <= minutes[0] < minutes[1]
    assert "the CPU backend and the host executor with CUDA kernels for sm_90a" in both
    monkeypatch.setattr(build_plan, "usable_cores", lambda: 16)
    assert "seconds on 16 cores" in make_plan({"CUDAARCHS": "90a"}).sentence


# ---------------------------------------------------------------- what cannot be built: one sentence each, from CMake
def test_a_program_that_is_not_there_or_fails_finds_no_gpu(machine):
    assert build_plan.find_gpus() == []
    machine.gpus('Field \\"compute_cap\\" is not a valid field to query.')
    assert build_plan.find_gpus() == []


@needs_cmake
@pytest.mark.parametrize(
    "target,sentence",
    [
        ("75", "CUDAARCHS: got '75', expected sm_80 or newer"),
        ("80;61-real", "CUDAARCHS: got '61-real', expected sm_80 or newer"),
        ("all", "CUDAARCHS: got 'all', which holds targets below sm_80"),
        ("sm_90", "CUDAARCHS: got 'sm_90', expected numbers such as 80"),
        ("100f", "CUDAARCHS: got '100f', which nvcc 12.8 does not know; nvcc 12.9 is the first that does"),
        ("native", "CUDAARCHS=native, but nvidia-smi finds no GPU here"),
    ],
)
def test_cmake_refuses_a_target_in_one_sentence(machine, target, sentence):
    machine.nvcc("12.8")
    result = machine.configure(CUDAARCHS=target)
    assert result.returncode != 0 and f"xlstm_cuda: {sentence}" in said(result)


@needs_cmake
@pytest.mark.parametrize(
    "prepare,reason",
    [
        (lambda machine: machine.no_nvcc(), "no working nvcc was found: /nonexistent/nvcc does not tell its version"),
        (lambda machine: machine.nvcc("11.8"), "nvcc is nvcc 11.8; the kernels need nvcc 12.0 or newer"),
        (
            lambda machine: machine.nvcc("12.4", "echo 'x.h:1: #error -- unsupported GNU version!'; exit 1"),
            "cannot compile an empty kernel: x.h:1: #error -- unsupported GNU version!",
        ),
    ],
    ids=["none", "too old", "host compiler too new"],
)
def test_cmake_says_why_nvcc_is_of_no_use(machine, prepare, reason):
    machine.gpus(H100)
    prepare(machine)
    refused = machine.configure("-DXLSTM_CUDA=ON")
    assert refused.returncode != 0 and "XLSTM_CUDA=ON, but " in said(refused) and reason in said(refused)
    without = machine.configure("-DXLSTM_CUDA=AUTO")
    assert without.returncode == 0, without.stderr
    (line,) = [line for line in (without.stdout + without.stderr).splitlines() if line.startswith("xlstm_cuda:")]
    assert "without CUDA kernels" in line and reason in line


@needs_cmake
def test_cmake_refuses_a_gpu_that_is_too_old(machine):
    machine.gpus(RTX_2080)
    reason = "NVIDIA RTX 2080 has compute capability 7.5; the kernels need 8.0 or newer"
    refused = machine.configure("-DXLSTM_CUDA=ON")
    assert refused.returncode != 0 and f"xlstm_cuda: {reason}; XLSTM_CUDA=OFF installs the CPU backend" in said(refused)
    without = machine.configure("-DXLSTM_CUDA=AUTO")
    assert without.returncode == 0 and f"without CUDA kernels ({reason})" in said(without)


@needs_cmake
def test_cmake_says_what_is_built_for_this_gpu(machine):
    """It stops at the fake nvcc, after the plan."""
    machine.gpus(H100)
    result = machine.configure("-DXLSTM_CUDA=ON")
    assert "builds the CPU backend with CUDA kernels for sm_90a (NVIDIA H100) by nvcc 13.0; about" in said(result)


@needs_cmake
@pytest.mark.parametrize(
    "system,sentence",
    [
        ("Windows", "xlstm_cuda: builds on Linux only, got Windows: install it inside WSL 2"),
        ("Darwin", "xlstm_cuda: builds on Linux only, got macOS: use a Linux container, where the CPU backend works"),
        ("FreeBSD", "xlstm_cuda: builds on Linux only, got FreeBSD: use a Linux machine or container"),
    ],
)
def test_cmake_refuses_another_system_in_one_sentence(machine, system, sentence):
    result = machine.configure(f"-DCMAKE_SYSTEM_NAME={system}")
    assert result.returncode != 0 and sentence in said(result)


@needs_cmake
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
def test_cmake_refuses_a_compiler_that_is_too_old(machine):
    old = machine.program("old-g++", 'exec g++ -U__GNUC__ -D__GNUC__=10 "$@"')
    result = machine.configure("-DXLSTM_CUDA=OFF", CXX=str(old))
    assert result.returncode != 0 and "xlstm_cuda needs g++ 11 or newer, got 10." in said(result) and "set CXX" in said(result)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
def test_a_host_compiler_of_nvcc_that_is_too_old_is_refused(machine, monkeypatch):
    def nvcc_with(version: int) -> None:
        """The fake nvcc hands its source, the argument after -c, to g++ as if that had this version."""
        find = 'while [ "$1" != -c ]; do shift; done'
        machine.nvcc(compile=f'{find}; g++ -x c++ -fsyntax-only -D__global__= -U__GNUC__ -D__GNUC__={version} "$2"')
        monkeypatch.setenv("CUDACXX", machine.environment["CUDACXX"])

    nvcc_with(build_plan.OLDEST_GNU)
    assert build_plan.find_nvcc().version == (13, 0)
    nvcc_with(build_plan.OLDEST_GNU - 1)
    with pytest.raises(Refused, match=r"its C\+\+ compiler is older than g\+\+ 11 and clang\+\+ 11; set CUDAHOSTCXX to a newer"):
        build_plan.find_nvcc()


def test_both_checks_of_the_compiler_and_the_documents_name_the_same_versions():
    checks = (ROOT / "cmake/Compiler.cmake").read_text()
    assert re.findall(r"set\(oldest_\w+ (\d+)\)", checks) == [str(build_plan.OLDEST_GNU), str(build_plan.OLDEST_CLANG)]
    for page in ("README.md", "docs/install.md"):
        assert f"g++ {build_plan.OLDEST_GNU} or clang {build_plan.OLDEST_CLANG}" in (ROOT / page).read_text(), page


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")
def test_cpu_kernels_use_no_builtin_that_the_oldest_compilers_lack():
    """g++ has __builtin_shufflevector from 12 on; the kernels are compiled here without it."""
    text = (ROOT / "CMakeLists.txt").read_text()
    files = re.search(r"add_library\(xlstm_cpu_\S+ OBJECT ([^)]*)\)", text)[1].split()
    assert "csrc/cpu/mlstm_forward.cpp" in files
    command = ["g++", "-std=c++17", "-fsyntax-only", "-Icsrc", "-DXLSTM_ISA=baseline", "-D__builtin_shufflevector=not_before_12"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@needs_cmake
def test_cmake_says_that_the_kernels_are_switched_off(machine):
    machine.gpus(H100)
    result = machine.configure("-DXLSTM_CUDA=OFF")
    assert result.returncode == 0, result.stderr
    assert "xlstm_cuda: builds the CPU backend without CUDA kernels (XLSTM_CUDA=OFF); about" in said(result)


@needs_cmake
@pytest.mark.parametrize("switch", ["XLSTM_CUDA", "XLSTM_SIMT"])
def test_an_unknown_switch_value_is_an_error(machine, switch):
    result = machine.configure("-DXLSTM_CUDA=OFF", f"-D{switch}=PERHAPS")
    assert result.returncode != 0 and f"{switch}: got 'PERHAPS'" in said(result)


# ---------------------------------------------------------------- what pip shows
FRONTEND = """
import subprocess, sys
hook = "import sys; sys.path.insert(0, 'cmake'); import build_backend; build_backend.get_requires_for_build_wheel()"
done = subprocess.run([sys.executable, "-c", hook], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
print("HIDDEN", done.stdout)
sys.exit(done.returncode)
"""


def frontend(machine: Machine, **switches: str) -> subprocess.CompletedProcess[str]:
    """What pip does: calls a hook of the build backend in a process of its own and keeps what that prints to itself."""
    pytest.importorskip("scikit_build_core", reason="the build backend of pyproject.toml is not installed")
    environment = machine.environment | switches
    return subprocess.run([sys.executable, "-c", FRONTEND], capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.skipif(not Path("/proc/self/fd/2").exists(), reason="there is no /proc")
def test_the_plan_is_shown_by_a_frontend_that_hides_the_build(machine):
    machine.gpus(H100)
    shown = frontend(machine)
    assert shown.returncode == 0, shown.stdout
    assert "xlstm_cuda: builds the CPU backend with CUDA kernels for sm_90a (NVIDIA H100) by nvcc 13.0; about" in shown.stderr
    assert "xlstm_cuda" not in shown.stdout


def test_a_build_that_cannot_work_is_refused_before_anything_is_downloaded(machine):
    machine.no_nvcc()
    refused = frontend(machine, XLSTM_CUDA="ON")
    assert refused.returncode == 1
    assert refused.stdout.strip().startswith("HIDDEN xlstm_cuda: XLSTM_CUDA=ON, but no working nvcc was found")
    assert "Traceback" not in refused.stdout


def test_another_system_is_refused_before_anything_is_downloaded(machine, monkeypatch):
    pytest.importorskip("scikit_build_core")
    import build_backend

    monkeypatch.setattr(build_backend.platform, "system", lambda: "Windows")
    with pytest.raises(SystemExit, match=r"^xlstm_cuda: builds on Linux only, got Windows: install it inside WSL 2"):
        build_backend.announce(None)


def test_a_log_file_of_the_frontend_is_not_written_over(machine, tmp_path):
    """A file that is not appended to has a position of its own in every process."""
    pytest.importorskip("scikit_build_core")
    log = tmp_path / "log"
    with log.open("w") as stream:
        stream.write("kept\n")
        stream.flush()
        subprocess.run([sys.executable, "-c", FRONTEND], stdout=stream, stderr=stream, cwd=ROOT, env=machine.environment)
    assert log.read_text().startswith("kept\nHIDDEN xlstm_cuda: builds the CPU backend")


# ---------------------------------------------------------------- what was built
@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd is not on PATH")
def test_module_needs_no_cuda_and_no_torch_library():
    libraries = subprocess.run(["ldd", native._C.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"libcuda|libcudart|libtorch|libc10", libraries), libraries


def test_sources_include_no_torch_header():
    found = [path for path in CSRC if re.search(r'#include\s*[<"](torch|ATen|c10)/', path.read_text())]
    assert not found


def test_sources_keep_assembly_and_compiler_switches_in_the_device_layer():
    """Kernels read the same for nvcc and for the executor: no asm, no launch syntax, no bare __shared__ outside csrc/device."""
    kernels = [path for path in CSRC if path.relative_to(ROOT).parts[1] in ("mlstm", "slstm")]
    assert kernels
    for path in kernels:
        code = re.sub(r"//.*", "", path.read_text())
        for pattern in (r"\basm\b", r"<<<", r"\b__shared__\b", r"__CUDACC__"):
            assert not re.search(pattern, code), f"{path.relative_to(ROOT)}: {pattern}"


def test_checkout_finds_the_installed_module():
    """Running from the checkout imports its Python files and the compiled module of the installed package."""
    code = "import xlstm_cuda; print(xlstm_cuda.__file__); print(xlstm_cuda.native._C.__file__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert Path(output[0]).is_relative_to(ROOT) and Path(output[1]).exists()


def test_stale_module_is_refused():
    class Stale:
        __name__ = "xlstm_cuda._simt"
        fields = native._C.fields + 1

    with pytest.raises(ImportError, match=r"xlstm_cuda\._simt and xlstm_cuda\._C were built of different sources.*reinstall"):
        native._check_fields(Stale())
