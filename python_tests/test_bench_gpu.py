"""The three commands for a GPU, rehearsed without one: a bare machine, hangs and crashes, limits, resumption, the archive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="bench/ is only in a checkout")

from bench import checkout
from bench.checkout import ROOT
from bench.gpu import __main__ as command
from bench.gpu import install, runner, stages, tests
from bench.gpu.stages import Stage

COMMANDS = ("check", "bench", "deep")


def plan(name: str, folder: Path = Path("/nowhere")) -> list[Stage]:
    return stages.stages(name, sys.executable, "90a-real", folder, ROOT)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture(autouse=True)
def no_out(monkeypatch):
    """Results go where a test says, whatever $OUT is outside."""
    monkeypatch.delenv("OUT", raising=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_installs_first_and_stops_without_it(name):
    first, *others = plan(name)
    assert first.name == "1-install" and first.required and not any(stage.required for stage in others)


def test_a_command_ends_at_its_limit_and_goes_on_the_next_time(tmp_path, capsys):
    slow = Stage("slow", 60, [python("import time; time.sleep(1.5)")], [])
    good = Stage("good", 60, [python("pass")], [])
    started = time.monotonic()
    assert not runner.run_all([slow, good], tmp_path, dry=False, again=False, limit=16)
    assert "good: not started, the 16 s of a command are over" in capsys.readouterr().out
    assert time.monotonic() - started < 16
    assert runner.run_all([slow, good], tmp_path, dry=False, again=False, limit=16)
    assert "slow: passed before" in capsys.readouterr().out


def test_a_stage_gets_no_more_than_the_command_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    slow = Stage("slow", 60, [python("import time; time.sleep(30)")], [])
    assert not runner.run_all([slow], tmp_path, dry=False, again=False, limit=2)
    assert json.loads((tmp_path / "stages.json").read_text())["slow"]["result"] == "timed out"


@pytest.mark.parametrize("name", COMMANDS)
def test_stages_name_tests_and_modules_that_exist(name):
    for stage in plan(name):
        for line in [*stage.commands, *stage.rehearsal]:
            assert all((ROOT / word).exists() for word in line if word.startswith("python_tests/")), line
            if line[1:2] == ["-m"] and line[2].startswith("bench"):
                path = ROOT / line[2].replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_stage_can_be_rehearsed(name):
    assert all(stage.rehearsal for stage in plan(name))


@pytest.mark.parametrize("stage", ["1-install", "2-primitives", "7-special", "6-memcheck"])
def test_rehearsal_passes(stage, tmp_path):
    one = next(one for name in COMMANDS for one in plan(name, tmp_path) if one.name == stage)
    log = tmp_path / "log"
    result, _ = runner.run(one, one.rehearsal, log)
    assert result == "passed", log.read_text()


def test_rehearsal_of_a_benchmark_sees_a_shape_that_does_not_fit(monkeypatch, capsys):
    from bench.gpu import rehearse

    assert rehearse.main(["mlstm", "--quick"]) == 0
    monkeypatch.setattr(rehearse, "GPU_BYTES", 1 << 30)
    assert rehearse.main(["mlstm", "--quick"]) == 1
    assert "GiB, more than 1" in capsys.readouterr().out


def test_stages_that_passed_are_not_run_again(tmp_path, capsys):
    counter = tmp_path / "counter"
    good = Stage("good", 20, [python(f"open({str(counter)!r}, 'a').write('x')")], [])
    bad = Stage("bad", 20, [python("raise SystemExit(3)")], [])
    assert not runner.run_all([good, bad], tmp_path, dry=False, again=False)
    assert not runner.run_all([good, bad], tmp_path, dry=False, again=False)
    assert counter.read_text() == "x"
    assert {name: one["result"] for name, one in json.loads((tmp_path / "stages.json").read_text()).items()} == {
        "good": "passed",
        "bad": "failed",
    }
    runner.run_all([good], tmp_path, dry=False, again=True)
    assert counter.read_text() == "xx"


def test_a_required_stage_that_fails_ends_the_command(tmp_path):
    first = Stage("first", 20, [["no-such-program"]], [], required=True)
    second = Stage("second", 20, [python("pass")], [])
    assert not runner.run_all([first, second], tmp_path, dry=False, again=False)
    assert list(json.loads((tmp_path / "stages.json").read_text())) == ["first"]


def test_a_stage_over_its_limit_is_killed_with_its_children(tmp_path):
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    result, seconds = runner.run(Stage("slow", 1, [], []), [python(sleeper)], tmp_path / "log")
    assert result == "timed out" and seconds < 20


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(runner, "gpu", lambda: ("", ""))
    assert command.main(["check"]) == 1
    assert "no GPU" in capsys.readouterr().out


def test_dry_run_shows_the_commands_and_leaves_one_archive(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "gpu", lambda: ("", ""))
    monkeypatch.setattr(command, "stages", lambda *_: [Stage("1-one", 20, [["nvcc", "x"]], [python("print('rehearsed')")])])
    assert command.main(["deep", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "1-one (20 s): PYTHONPATH=" in out and " nvcc x" in out and "passed" in out and "rehearsed" in out
    with tarfile.open(tmp_path / "out-deep.tar.gz") as archive:
        assert "out/1-one.log" in archive.getnames()


def test_results_are_keyed_by_gpu_and_sources_and_go_to_out(monkeypatch, tmp_path):
    assert runner.results_folder("H100") == ROOT / f"bench/results/H100-{checkout.sources()}"
    monkeypatch.setenv("OUT", str(tmp_path))
    assert runner.results_folder("H100").parent == tmp_path


def test_sources_are_hashed_by_content_alone(tmp_path):
    for copy in ("a", "b"):
        (tmp_path / copy / "csrc").mkdir(parents=True)
        (tmp_path / copy / "csrc/walk.cu").write_text("kernel")
    one, other = tmp_path / "a", tmp_path / "b"
    assert checkout.sources(root=one) == checkout.sources(root=other)
    (other / "csrc/walk.o").write_bytes(b"no source")
    (other / "bench/results").mkdir(parents=True)
    (other / "bench/results/notes.txt").write_text("no source")
    assert checkout.sources(root=one) == checkout.sources(root=other)
    (other / "csrc/walk.cu").write_text("another kernel")
    assert checkout.sources(root=one) != checkout.sources(root=other)


def test_without_git_the_sources_stand_in_for_the_commit(monkeypatch):
    monkeypatch.setattr(checkout, "output_of", lambda *_: "")
    assert checkout.commit() == f"sources-{checkout.sources()}"


def test_a_new_out_folder_resumes_what_an_earlier_command_has_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "KEPT", tmp_path / "kept")
    stage = Stage("good", 20, [python("print('once')")], [])
    for call in ("first", "second"):
        monkeypatch.setenv("OUT", str(tmp_path / call))
        folder = runner.results_folder("H100")
        runner.resume(folder)
        assert runner.run_all([stage], folder, dry=False, again=False)
    assert "good: passed before" in capsys.readouterr().out
    assert "once" in (folder / "good.log").read_text()


def test_the_same_sources_are_not_installed_twice(monkeypatch, tmp_path, capfd):
    module = tmp_path / "_C.so"
    built = []

    def build(switches, *_) -> int:
        built.append(switches)
        module.write_text(f"module {len(built)}")
        return 0

    monkeypatch.setattr(install, "module", lambda: module if module.exists() else None)
    monkeypatch.setattr(install, "build", build)
    monkeypatch.setattr(install, "missing", list)
    monkeypatch.setattr(install, "report", lambda _: 0)
    assert install.main(["--architecture", "90a-real"]) == 0
    assert install.main(["--architecture", "90a-real"]) == 0
    assert len(built) == 1 and built[0]["CUDAARCHS"] == "90a-real" and built[0]["XLSTM_SELFTEST"] == "ON"
    assert "installed already" in capfd.readouterr().out
    install.main(["--architecture", "80-real"])
    assert len(built) == 2
    module.write_text("somebody else's build")
    install.main(["--architecture", "80-real"])
    assert len(built) == 3


def test_a_machine_that_cannot_build_hears_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(install, "installed", lambda: None)
    monkeypatch.setattr(install, "missing", lambda nvcc=True: ["no nvcc", "no ninja"])
    assert install.main(["--architecture", "90a-real"]) == 1
    assert "cannot build: no nvcc; no ninja" in capsys.readouterr().out


def run_tests(folder: Path, *more: str) -> tuple[int, str]:
    """bench.gpu.tests on the files of a folder: its exit status and what it printed."""
    files = sorted(map(str, folder.glob("test_*.py")))
    options = ["--name", "one", "--out", str(folder / "out"), "--test-seconds", "3", *more]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.tests", *options, *files],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("more", [["--processes", "1"], ["--processes", "2"]], ids=["one at a time", "two at a time"])
def test_a_hang_a_crash_and_a_file_that_cannot_be_read_cost_one_test_each(tmp_path, more):
    (tmp_path / "test_a.py").write_text(
        textwrap.dedent(
            """
            import ctypes, os, sys, types
            import pytest

            native = types.ModuleType("xlstm_cuda.native")  # stands for the package: one launcher that never returns
            native._C = types.ModuleType("_C")
            native._C.walk = ctypes.PyDLL(None).pause  # waits and keeps the interpreter's lock
            sys.modules["xlstm_cuda.native"] = native

            def test_first(): pass
            def test_hang_in_a_launch(): native._C.walk()
            def test_crash(): os.abort()
            def test_red(): assert 1 == 2
            @pytest.mark.skip(reason="no such GPU")
            def test_skipped(): pass
            def test_last(): pass
            """
        )
    )
    (tmp_path / "test_b.py").write_text("import no_such_module")
    (tmp_path / "test_c.py").write_text("def test_after(): pass")
    status, out = run_tests(tmp_path, *more)
    assert status == 1, out
    end = out[out.index("---- skipped") :]
    assert "3 passed, 4 red, 1 skipped" in end, out
    assert "1 x Skipped: no such GPU" in end
    assert "in test_hang_in_a_launch" in end  # the stack
    for red in ("test_hang_in_a_launch: hung or crashed", "test_crash: hung or crashed", "test_red: ", "no_such_module"):
        assert red in end[end.index("---- red") :], end
    (tmp_path / "test_b.py").unlink()
    again = run_tests(tmp_path, *more)[1]
    assert "0 passed, 3 red, 1 skipped, 3 passed before" in again, again


def test_the_last_launch_of_a_test_that_hangs_is_named():
    events = [
        {"pid": 1, "collected": ["a", "b"]},
        {"pid": 1, "start": "a"},
        {"pid": 2, "start": "b"},
        {"pid": 1, "launch": "slstm_forward", "with": "{'kernel': 'grid'}"},
        {"pid": 2, "launch": "mlstm_walk", "with": "{'use': 'h'}"},
        {"pid": 2, "test": "b", "outcome": "passed", "seconds": 1.0, "why": ""},
    ]
    seen = tests.read([*map(json.dumps, events), '{"pid": 1, "te'])
    assert seen.red == {"a": "hung or crashed; last launch: slstm_forward {'kernel': 'grid'}"}
    assert seen.passed == {"b"} and not seen.left


def test_only_skips_are_no_pass(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.skip(reason='no GPU')\ndef test_a(): pass")
    status, out = run_tests(tmp_path, "--processes", "1")
    assert status == 1 and "0 passed, 0 red, 1 skipped" in out


def test_tests_over_the_limit_of_their_stage_leave_what_was_seen(tmp_path):
    (tmp_path / "test_a.py").write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\ndef test_c(): pass")
    status, out = run_tests(tmp_path, "--processes", "1", "--seconds", str(tests.RESERVE + 12), "--test-seconds", "50")
    assert status == 1 and "not run to its end" in out and "1 passed, 1 red, 0 skipped, 1 not run" in out, out


def test_tests_report_before_a_shorter_limit_of_their_command(tmp_path):
    (tmp_path / "test_a.py").write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)")
    line = [sys.executable, "-m", "bench.gpu.tests", "--name", "one", "--out", str(tmp_path), str(tmp_path / "test_a.py")]
    result, _ = runner.run(Stage("one", 300, [], []), [line], tmp_path / "log", seconds=tests.RESERVE + 12)
    assert result == "failed" and "1 passed, 1 red, 0 skipped" in (tmp_path / "log").read_text()


def bare_machine(folder: Path, with_packages: bool) -> tuple[Path, Path]:
    """A copy of the checkout without compiled modules, and an interpreter without the package: with our others, or none."""
    copy = folder / "checkout"
    copy.mkdir()
    for path in [ROOT / name for name in (*checkout.ALL, "Makefile", "README.md", "LICENSE", "NOTICE")]:
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"))
        else:
            shutil.copy(path, copy)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    if with_packages:
        links = folder / "site"
        links.mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.lower().startswith(("xlstm_cuda", "_xlstm_cuda")):
                (links / entry.name).symlink_to(entry)
        next((folder / "venv/lib").glob("python*/site-packages")).joinpath("links.pth").write_text(f"{links}\n")
    return copy, folder / "venv/bin/python"


def rehearse(copy: Path, interpreter: Path, name: str) -> subprocess.CompletedProcess[str]:
    return alone(copy, "make", f"gpu-{name}", "DRY=1", f"PYTHON={interpreter}")


def alone(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where nothing of this process's environment leads to its packages."""
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "OUT")}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
def test_a_machine_with_nothing_but_python_hears_what_it_lacks(tmp_path):
    copy, interpreter = bare_machine(tmp_path, with_packages=False)
    for name in COMMANDS:
        done = rehearse(copy, interpreter, name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1-install (dry run): not rehearsed" in done.stdout
        assert "no Python package scikit-build-core; no Python package pybind11; no pip" in done.stdout


@pytest.mark.deep
@pytest.mark.skipif(bool(install.missing(nvcc=False)), reason="; ".join(install.missing(nvcc=False)))
def test_a_machine_without_the_package_rehearses_every_stage(tmp_path):
    """The installation is a real one, for the CPU."""
    copy, interpreter = bare_machine(tmp_path, with_packages=True)
    hidden = alone(copy, str(interpreter), "-c", "import torch, xlstm_cuda")
    assert "compiled module xlstm_cuda._C is missing" in hidden.stderr
    for name in COMMANDS:
        done = rehearse(copy, interpreter, name)
        logs = "".join(log.read_text() for log in copy.glob("bench/results/dry-run-*/*.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        assert all(f"{stage.name} (dry run): passed" in done.stdout for stage in plan(name)), done.stdout
