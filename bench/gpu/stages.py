"""The stages of the three commands, most valuable first, and how far each can be rehearsed without a GPU.

check   1 install: build for this GPU with the test kernels, print the environment
        2 primitives: every function of csrc/device against a scalar loop: what the host executor cannot prove
        3 kernels: the tests that ran under the host executor, with backend "cuda"
bench   4 the quick benchmarks, suite by suite; before the sLSTM's the peers that compile on first use do so
deep    5 compute-sanitizer on a small grid of calls
        6 determinism, graphs, streams, large tensors
        7 the full benchmarks, as far as the time goes
        8 ncu on the walk of the mLSTM and on the sLSTM
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 540  #: seconds of a whole command

KERNEL_TESTS = (
    "test_mlstm_step_kernel.py", "test_mlstm.py", "test_mlstm_kernels.py", "test_simt_tile.py", "test_slstm*.py",
)  # fmt: skip
ENVIRONMENT = (
    "import platform, torch; print('python', platform.python_version(), 'torch', torch.__version__, 'cuda', torch.version.cuda);"
    "import xlstm_cuda; print(*xlstm_cuda.backends().values(), sep='\\n')"
)
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


@dataclass(frozen=True)
class Stage:
    """Commands with one time limit for all of them.

    rehearsal: what a machine without a GPU can run in their place.
    required: the stages after it make no sense without it.
    """

    name: str
    seconds: int
    commands: list[list[str]]
    rehearsal: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = False


def stages(command: str, python: str, architecture: str, folder: Path, root: Path) -> list[Stage]:
    """The stages of "check", "bench" or "deep"; results of benchmarks and profiles go to ``folder``."""
    return {"check": check, "bench": quick_bench, "deep": deep}[command](python, architecture, folder, root)


def check(python: str, architecture: str, folder: Path, root: Path) -> list[Stage]:
    install = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "."]
    build = {"XLSTM_SELFTEST": "ON", "XLSTM_CUDA": "ON", "CUDAARCHS": architecture}
    environment = [python, "-c", ENVIRONMENT]
    primitives = tests(python, root, "test_simt_primitives.py")
    kernels = tests(python, root, *KERNEL_TESTS)
    return [
        Stage("1-install", 150, [["nvidia-smi"], install, environment], [environment], build, required=True),
        Stage("2-primitives", 90, [primitives], [collect(primitives)]),
        Stage("3-kernels", 240, [kernels], [collect(kernels)]),
    ]


def quick_bench(python: str, architecture: str, folder: Path, root: Path) -> list[Stage]:
    rehearse = [python, "-m", "bench.gpu.rehearse"]
    suites = {"mlstm": 130, "slstm": 110, "block": 60, "decode": 50, "model": 40}
    timed = [
        Stage(
            f"4-bench-{suite}", seconds,
            [[python, "-m", "bench", suite, "--device", "cuda", "--quick", "--budget", str(seconds - 15), "--out", str(folder)]],
            [[*rehearse, suite, "--quick"]],
        )
        for suite, seconds in suites.items()
    ]  # fmt: skip
    compile_peers = Stage("4-peers", 145, [[python, "-m", "bench.gpu.warm"]], [[*rehearse, "peers"]])
    return [timed[0], compile_peers, *timed[1:]]


def deep(python: str, architecture: str, folder: Path, root: Path) -> list[Stage]:
    calls = [python, "-m", "bench.gpu.calls"]
    sanitize = [["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *calls, "small"] for tool in SANITIZERS]
    special = tests(python, root, "test_gpu.py", keyword="")
    full = [python, "-m", "bench", "all", "--device", "cuda", "--budget", "140", "--out", str(folder)]
    profiles = [
        [
            "ncu", "--clock-control", "none", "--set", "full", "--import-source", "no", "-k", f"regex:{kernel}", "-c", "4", "-f",
            "-o", str(folder / f"ncu-{call}"), *calls, call,
        ]
        for call, kernel in (("mlstm", "walk"), ("slstm", "forward|backward"))
    ]  # fmt: skip
    return [
        Stage("5-sanitizer", 200, sanitize, [[*calls, "small", "--backend", "cpu"]], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
        Stage("6-special", 90, [special], [collect(special)]),
        Stage("7-bench", 160, [full], [[python, "-m", "bench.gpu.rehearse", "all"]]),
        Stage("8-ncu", 85, profiles, [[*calls, "mlstm", "--backend", "cpu"], [*calls, "slstm", "--backend", "cpu"]]),
    ]


def tests(python: str, root: Path, *patterns: str, keyword: str = "cuda") -> list[str]:
    """The tests of these files; those of backend "cuda" by their id."""
    files = sorted(str(file.relative_to(root)) for one in patterns for file in (root / "python_tests").glob(one))
    return [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *(["-k", keyword] if keyword else []), *files]


def collect(command: list[str]) -> list[str]:
    """The same tests, only collected: an error in a file or a selection that is empty shows."""
    return [*command, "--collect-only"]
