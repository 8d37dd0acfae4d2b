"""The way from Python to the kernels stays short, and the script that measures it sees what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import house


def test_an_option_stands_on_few_lines():
    lines = house.lines_of_option()
    assert 5 <= len(lines) <= 15, "\n".join(lines)


def test_bindings_are_short():
    assert house.line_count(*house.BINDINGS) <= 250


def test_no_long_parameter_list_is_written_twice():
    assert house.repeated_lists() == []


def test_every_function_of_the_ops_is_typed():
    assert house.untyped_functions() == []


def test_the_measures_see_what_they_should(tmp_path, monkeypatch, capsys):
    (tmp_path / "ops/more").mkdir(parents=True)
    names = "a, b, c, d, e, f, g, h, eps"
    Path(tmp_path / "ops/one.py").write_text(f"def x({names}): ...\ndef y(self, {names}, more: int) -> int: ...\n")
    Path(tmp_path / "ops/more/two.py").write_text("def z(a: int) -> int: ...\n")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.repeated_lists("ops") == [names]
    assert house.untyped_functions("ops") == ["ops/one.py:1: x", "ops/one.py:2: y"]
    monkeypatch.setattr(house, "CORRIDOR", ("ops/*.py",))
    assert [line.split(":")[1] for line in house.lines_of_option()] == ["1", "2"]
    house.main()
    assert "eps stands on 2 lines" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", [*house.CORRIDOR, *house.USES_IT, *house.BINDINGS, *house.READER])
def test_the_measured_files_exist(pattern):
    assert house.files(pattern)
