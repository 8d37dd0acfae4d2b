"""The stages of the three commands, most valuable first, and how far each can be rehearsed without a GPU.

every   1-install     build for this GPU with the test kernels unless these sources are installed; print the environment
check   2-primitives  every function of csrc/device against a scalar loop: what the host executor cannot prove
        3-risky       the kernels whose blocks wait for each other (sLSTM cluster and grid): a hang shows here, first and alone
        4-kernels     the other tests that ran under the host executor, with backend "cuda"
bench   5             the quick benchmarks, suite by suite; before the sLSTM's the peers that compile on first use do so
deep    6             compute-sanitizer's four tools on a small grid of calls
        7-special     determinism, graphs, streams, large tensors, memory
        8-bench       the full benchmarks, as far as the time goes
        9-ncu         ncu on the walk of the mLSTM and on the sLSTM

Only the standard library is imported here and in what the commands import: the package is there after stage 1, not before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .install import tool

LIMIT = 540  #: seconds of a whole command
SECONDS_LEFT = "XLSTM_SECONDS_LEFT"  #: tells a stage's command when it will be killed, so that it can report before

RISKY_TESTS = ("test_slstm_split_kernels.py",)
KERNEL_TESTS = (
    "test_mlstm_step_kernel.py", "test_mlstm.py", "test_mlstm_kernels.py", "test_ops.py", "test_simt_tile.py", "test_slstm*.py",
)  # fmt: skip
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}  #: so that the stack of a hang shows the launch it waits for


@dataclass(frozen=True)
class Stage:
    """Commands with one time limit for all of them.

    rehearsal: what a machine without a GPU can run in their place.
    required: the stages after it make no sense without it.
    always: run even where it passed before, because it looks at the machine as it is now.
    """

    name: str
    seconds: int
    commands: list[list[str]]
    rehearsal: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = False
    always: bool = False


def stages(command: str, python: str, architecture: str, folder: Path, root: Path) -> list[Stage]:
    """The stages of "check", "bench" or "deep"; what they leave goes to ``folder``."""
    rest = {"check": check, "bench": quick_bench, "deep": deep}[command](python, folder, root)
    return [install(python, architecture, root, bounded_waits=command != "bench"), *rest]


def rehearsal_site(root: Path) -> Path:
    """Where a rehearsal on a machine without the package installs it, and its other stages find it."""
    return root / "build/gpu/rehearsal/site"


def install(python: str, architecture: str, root: Path, bounded_waits: bool) -> Stage:
    """Times are of the kernels that users have, whose waits have no bound."""
    command = [python, "-m", "bench.gpu.install"]
    here = [*command, "--architecture", architecture, *(["--bounded-waits"] if bounded_waits else [])]
    return Stage(
        "1-install", 200,
        [["nvidia-smi"], here], [[*command, "--rehearse", str(rehearsal_site(root))]],
        required=True, always=True,
    )  # fmt: skip


def check(python: str, folder: Path, root: Path) -> list[Stage]:
    risky = {str(path) for path in files(root, *RISKY_TESTS)}
    kernels = [path for path in files(root, *KERNEL_TESTS) if str(path) not in risky]
    return [
        tests("2-primitives", 60, python, folder, files(root, "test_simt_primitives.py"), BLOCKING),
        tests("3-risky", 90, python, folder, files(root, *RISKY_TESTS), BLOCKING),
        tests("4-kernels", 240, python, folder, kernels, BLOCKING),
    ]


def quick_bench(python: str, folder: Path, root: Path) -> list[Stage]:
    rehearse = [python, "-m", "bench.gpu.rehearse"]
    suites = {"mlstm": 120, "slstm": 100, "block": 60, "decode": 50, "model": 40}
    timed = [
        Stage(
            f"5-bench-{suite}", seconds,
            [[python, "-m", "bench", suite, "--device", "cuda", "--quick", "--budget", str(seconds - 15), "--out", str(folder)]],
            [[*rehearse, suite, "--quick"]],
        )
        for suite, seconds in suites.items()
    ]  # fmt: skip
    compile_peers = Stage("5-peers", 145, [[python, "-m", "bench.gpu.warm"]], [[*rehearse, "peers"]])
    return [timed[0], compile_peers, *timed[1:]]


def deep(python: str, folder: Path, root: Path) -> list[Stage]:
    calls = [python, "-m", "bench.gpu.calls"]
    sanitizer, ncu = tool("compute-sanitizer") or "compute-sanitizer", tool("ncu") or "ncu"
    sanitized = [
        Stage(
            f"6-{name}", 60, [[sanitizer, "--tool", name, "--error-exitcode", "9", *calls, "small"]],
            [[*calls, "small", "--backend", "cpu"]] if name == SANITIZERS[0] else [[*calls, "--help"]],
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for name in SANITIZERS
    ]  # fmt: skip
    full = [python, "-m", "bench", "all", "--device", "cuda", "--budget", "140", "--out", str(folder)]
    profiles = [
        [
            ncu, "--clock-control", "none", "--set", "full", "--import-source", "no", "-k", f"regex:{kernel}", "-c", "4", "-f",
            "-o", str(folder / f"ncu-{call}"), *calls, call,
        ]
        for call, kernel in (("mlstm", "walk"), ("slstm", "forward|backward"))
    ]  # fmt: skip
    return [
        *sanitized,
        tests("7-special", 120, python, folder, files(root, "test_gpu.py"), {}, keyword="", more=["--processes", "1"]),
        Stage("8-bench", 160, [full], [[python, "-m", "bench.gpu.rehearse", "all"]]),
        Stage("9-ncu", 85, profiles, [[*calls, "mlstm", "--backend", "cpu"], [*calls, "slstm", "--backend", "cpu"]]),
    ]


def files(root: Path, *patterns: str) -> list[Path]:
    """Test files, relative to the root."""
    return sorted({path.relative_to(root) for pattern in patterns for path in (root / "python_tests").glob(pattern)})


def tests(
    name: str, seconds: int, python: str, folder: Path, paths: list[Path], environment: dict[str, str],
    keyword: str = "cuda", more: list[str] | None = None,
) -> Stage:  # fmt: skip
    """These files, of which the tests with ``keyword`` in their id; the rehearsal collects them."""
    command = [python, "-m", "bench.gpu.tests", "--name", name, "--out", str(folder), "--seconds", str(seconds), *(more or [])]
    command += ["-k", keyword] if keyword else []
    command += map(str, paths)
    return Stage(name, seconds, [command], [[*command, "--collect-only"]], environment)
