"""First contact with a GPU, in resumable stages: `python bench/gpu_check.py`.

    1 install      build for this GPU with the test kernels (XLSTM_SELFTEST=ON), print the environment
    2 primitives   every function of csrc/device against a scalar loop on the device: what the host executor cannot prove
    3 kernels      the tests that ran under the host executor, with backend "cuda"

Each stage has its own time limit and leaves a log and a line in stages.json in the results folder; a stage that passed at this
commit is not run again (--again runs it). --dry-run shows the commands and, where there is no GPU, runs the tests of stages 2
and 3 under the host executor, so that a mistake in this file does not cost device time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = (
    "import platform, torch; print('python', platform.python_version(), 'torch', torch.__version__, 'cuda', torch.version.cuda);"
    "p = torch.cuda.get_device_properties(0);"
    "print(p.name, f'sm_{p.major}{p.minor}', p.multi_processor_count, 'SMs', p.total_memory);"
    "import xlstm_cuda; print(*xlstm_cuda.backends().values(), sep='\\n')"
)


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: int
    commands: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)


def stages(python: str, architecture: str, backend: str) -> list[Stage]:
    pytest = [python, "-m", "pytest", "-q", "-rs", "-k", backend]
    install = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "."]
    build = {"XLSTM_SELFTEST": "ON", "XLSTM_CUDA": "ON", "CUDAARCHS": architecture}
    kernel_tests = ["python_tests/test_mlstm_step_kernel.py", "python_tests/test_mlstm.py", "python_tests/test_mlstm_kernels.py"]
    kernel_tests += ["python_tests/test_simt_tile.py", "python_tests/test_slstm_kernels.py"]
    kernel_tests += ["python_tests/test_slstm_split_kernels.py"]
    kernel_tests += ["python_tests/test_slstm_step_kernel.py", "python_tests/test_slstm_kernel_ops.py"]
    return [
        Stage("1-install", 150, [["nvidia-smi"], install, [python, "-c", ENVIRONMENT]], build),
        Stage("2-primitives", 90, [[*pytest, "python_tests/test_simt_primitives.py"]]),
        Stage("3-kernels", 240, [[*pytest, *kernel_tests]]),
    ]


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def gpu() -> tuple[str, str]:
    """The GPU's name and the architecture to build for, empty without one."""
    line = output_of("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader").split("\n")[0]
    if not line:
        return "", ""
    name, capability = (part.strip() for part in line.split(","))
    architecture = capability.replace(".", "")
    return name.replace(" ", "-"), {"90": "90a"}.get(architecture, architecture) + "-real"


def run(stage: Stage, log: Path) -> tuple[str, float]:
    """ "passed", "failed" or "timed out", and the seconds it took."""
    started = time.monotonic()
    with log.open("w") as out:
        for command in stage.commands:
            out.write(f"$ {' '.join(command)}\n")
            out.flush()
            left = stage.seconds - (time.monotonic() - started)
            try:
                environment = {**os.environ, **stage.environment}
                streams = {"stdout": out, "stderr": subprocess.STDOUT}
                subprocess.run(command, cwd=ROOT, env=environment, timeout=max(left, 1), check=True, **streams)
            except subprocess.TimeoutExpired:
                return "timed out", time.monotonic() - started
            except (OSError, subprocess.CalledProcessError) as error:
                out.write(f"{error}\n")
                return "failed", time.monotonic() - started
    return "passed", time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="results folder; default bench/results/<gpu>-<commit>")
    parser.add_argument("--again", action="store_true", help="also run stages that passed")
    parser.add_argument("--dry-run", action="store_true", help="show the commands; without a GPU, run the tests on simt")
    arguments = parser.parse_args()
    name, architecture = gpu()
    if not name and not arguments.dry_run:
        print("gpu-check: no GPU (nvidia-smi finds none); --dry-run tries what can be tried without one")
        return 1
    commit = output_of("git", "rev-parse", "--short", "HEAD") or "unknown"
    plan = stages(sys.executable, architecture or "90a-real", "cuda" if name else "simt")
    if arguments.dry_run:
        for stage in plan:
            for command in stage.commands:
                settings = " ".join(f"{k}={v}" for k, v in stage.environment.items())
                print(f"{stage.name} ({stage.seconds} s): {settings} {' '.join(command)}".replace("  ", " "))
        if name:
            return 0
        plan = plan[1:]
    folder = arguments.out or ROOT / "bench/results" / f"{name or 'dry-run'}-{commit}"
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "stages.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    for stage in plan:
        if done.get(stage.name, {}).get("result") == "passed" and not arguments.again:
            print(f"{stage.name}: passed before")
            continue
        log = folder / f"{stage.name}.log"
        result, seconds = run(stage, log)
        done[stage.name] = {"result": result, "seconds": round(seconds, 1)}
        record.write_text(json.dumps(done, indent=1) + "\n")
        print(f"{stage.name}: {result} in {seconds:.0f} s; {log.read_text().strip().splitlines()[-1]}", flush=True)
        if result != "passed" and stage.name.startswith("1"):
            break  # nothing else can run
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, folder.name)
    return any(done.get(stage.name, {}).get("result") != "passed" for stage in plan)


if __name__ == "__main__":
    raise SystemExit(main())
