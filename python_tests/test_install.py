"""`make demo` and `make test` install once, into the environment that is there, and never bring another torch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")


@pytest.fixture
def command(tmp_path, monkeypatch) -> ModuleType:
    """.ci/install.py over a small checkout, without a GPU and without nvcc."""
    spec = importlib.util.spec_from_file_location("install", ROOT / ".ci" / "install.py")
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [name for name in os.environ if name.startswith(("XLSTM", "CUDA"))] + ["VIRTUAL_ENV", "CONDA_PREFIX", "CI"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
    checkout = tmp_path / "checkout"
    (checkout / "csrc" / "mlstm").mkdir(parents=True)
    for name in ("CMakeLists.txt", "pyproject.toml", "constraints-cpu.txt", "csrc/mlstm/walk.cu"):
        (checkout / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", checkout)
    gpus(module, monkeypatch, "exit 9", tmp_path)
    return module


def gpus(module: ModuleType, monkeypatch: pytest.MonkeyPatch, script: str, folder: Path) -> None:
    """A program named nvidia-smi, first on PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def environment_in(folder: Path) -> Path:
    """Looks like an environment: its Python is this one."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


# ---------------------------------------------------------------- the environment
@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_the_active_environment_is_taken(command, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, str(environment_in(tmp_path / "active")))
    assert command.active_environment() == tmp_path / "active"


def test_an_environment_that_was_removed_is_not_taken(command, tmp_path, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    assert command.active_environment() is None


def test_without_one_a_venv_is_made_once(command, monkeypatch):
    made = []

    def run(words, **_):
        made.append(words[1:])
        environment_in(Path(words[-1]))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.make_environment() == command.make_environment() == command.ROOT / ".venv"
    assert made == [["-m", "venv", str(command.ROOT / ".venv")]]


def test_a_python_without_venv_gets_the_remedy(command, monkeypatch):
    monkeypatch.setattr(command.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1))
    with pytest.raises(SystemExit, match="sudo apt install python3-venv"):
        command.make_environment()


# ---------------------------------------------------------------- once
@pytest.fixture
def installed(command, tmp_path, monkeypatch):
    """Says whether a purpose needs no installation after "test" was installed."""
    stamp, python = tmp_path / "stamp.json", tmp_path / "python"
    monkeypatch.setattr(command, "record_of", lambda _: "record")
    stamp.write_text(command.json.dumps({**command.wanted_parts("test"), "record": "record"}))
    return lambda purpose: command.is_installed(stamp, python, command.wanted_parts(purpose))


def test_nothing_is_installed_twice(installed):
    assert installed("test") and installed("demo"), "the tests' installation has all that the demo needs"
    assert not installed("deep")


def test_a_changed_source_is_installed(command, installed):
    (command.ROOT / "csrc/mlstm/walk.so").write_text("built in place")
    assert installed("test")
    (command.ROOT / "csrc/mlstm/walk.cu").write_text("changed")
    assert not installed("test")


def test_another_switch_is_installed(installed, monkeypatch):
    monkeypatch.setenv("CUDAARCHS", "90a")
    assert not installed("test")


def test_what_was_changed_by_hand_is_installed_again(command, installed, monkeypatch):
    monkeypatch.setattr(command, "record_of", lambda _: "another")
    assert not installed("test")
    monkeypatch.setattr(command, "record_of", lambda _: "")
    assert not installed("test")


def test_switches_of_the_user_win(command, monkeypatch):
    assert command.wanted_parts("test")["switches"] == {"XLSTM_SIMT": "ON"}
    monkeypatch.setenv("XLSTM_SIMT", "OFF")
    assert command.wanted_parts("test")["switches"] == {"XLSTM_SIMT": "OFF"}


# ---------------------------------------------------------------- torch
@pytest.fixture
def options(command, tmp_path, monkeypatch):
    """The options of pip about torch, given what the environment has and what pip would choose."""

    def of(there: str, chosen: str = "2.13.0+cpu") -> str:
        def run(words, **_):
            if "pip" in words:
                return subprocess.CompletedProcess(words, 0, f'{{"version": "{chosen}"}}', "")
            return subprocess.CompletedProcess(words, 0 if there else 1, there, "")

        with monkeypatch.context() as patch:
            patch.setattr(command, "subprocess", type("Fake", (), {"run": staticmethod(run)}))
            return " ".join(command.torch_options(Path("python"), tmp_path))

    return of


def test_a_torch_that_is_there_stays(options, tmp_path):
    assert options("2.11.0+cu130\n") == f"-c {tmp_path / 'torch.txt'}"
    assert (tmp_path / "torch.txt").read_text() == "torch==2.11.0+cu130\n"


def test_without_a_gpu_torch_comes_without_cuda(command, options):
    constraints = f"-c {command.ROOT / 'constraints-cpu.txt'}"
    assert options("") == constraints
    assert options("", "2.13.0") == f"{constraints} --extra-index-url {command.CPU_TORCH}"


def test_with_a_gpu_torch_comes_with_cuda_except_in_ci(command, options, tmp_path, monkeypatch):
    gpus(command, monkeypatch, "echo '9.0, NVIDIA H100'", tmp_path)
    assert options("") == ""
    monkeypatch.setenv("CI", "1")
    assert "constraints-cpu.txt" in options("")


# ---------------------------------------------------------------- the Makefile
_OF_MAKE = ("MAKE", "CONDA", "VIRTUAL", "INSTALL", "JOBS", "ARGS", "STEPS")  #: what a make around the tests may have set


def commands_of(*words: str, **environment: str) -> list[str]:
    """What make would run."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_OF_MAKE)}
    done = subprocess.run(["make", "-n", *words], capture_output=True, text=True, cwd=ROOT, check=True, env=plain | environment)
    return done.stdout.strip().splitlines()


@needs_make
def test_make_needs_no_program_named_python():
    assert commands_of("demo", "STEPS=40") == ["python3 .ci/install.py demo", "python3 -m xlstm_cuda train --steps 40"]
    assert commands_of("test", "ARGS=-k errors") == [
        "python3 .ci/install.py test",
        "python3 -m pytest -n 2 --dist loadfile -k errors",
    ]


@needs_make
def test_make_takes_the_programs_of_the_environment(tmp_path):
    """python3 is that of the environment once it is there, and that of the system before."""
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python3").write_text('#!/bin/sh\necho "environment: $*"\n')
    (environment / "bin" / "python3").chmod(0o755)
    shown = subprocess.run(
        ["make", "-s", "test", "INSTALL=no", "JOBS=3"], capture_output=True, text=True, cwd=ROOT, check=True,
        env={**os.environ, "VIRTUAL_ENV": str(environment)},
    ).stdout  # fmt: skip
    assert shown.strip() == "environment: -m pytest -n 3 --dist loadfile"
