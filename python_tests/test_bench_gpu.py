"""The three commands for a GPU, rehearsed without one: limits, resumption, time-outs, the archive."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="bench/ is only in a checkout")

from bench.environment import ROOT
from bench.gpu import __main__ as command
from bench.gpu import runner, stages
from bench.gpu.stages import LIMIT, Stage

COMMANDS = ("check", "bench", "deep")


def plan(name: str, folder: Path = Path("/nowhere")) -> list[Stage]:
    return stages.stages(name, sys.executable, "90a-real", folder, ROOT)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("name", COMMANDS)
def test_stages_fit_in_nine_minutes(name):
    assert sum(stage.seconds for stage in plan(name)) <= LIMIT


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


@pytest.mark.parametrize("stage", ["1-install", "2-primitives", "6-special", "5-sanitizer"])
def test_rehearsal_passes(stage, tmp_path):
    one = next(one for name in COMMANDS for one in plan(name) if one.name == stage)
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
    assert "1-one (20 s): nvcc x" in out and "passed" in out and "rehearsed" in out
    with tarfile.open(tmp_path / "out-deep.tar.gz") as archive:
        assert "out/1-one.log" in archive.getnames()
