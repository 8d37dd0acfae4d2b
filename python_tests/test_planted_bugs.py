"""The scripts that plant bugs find their places: a pattern that no longer occurs would only be noticed when all of them run."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from planted_bugs import ROOT, Bug, misplaced, table

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("*_mutants.py"))

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="csrc/ is only in a checkout")


def bugs_of(script: str) -> dict[str, Bug]:
    module = importlib.import_module(script)
    kernel = getattr(module, "KERNEL", None)  # of a script whose bugs are all in one file
    if isinstance(kernel, Path):
        return {name: (str(kernel.relative_to(ROOT)), *texts) for name, texts in module.MUTANTS.items()}
    return module.MUTANTS


def test_every_script_is_known():
    assert len(SCRIPTS) >= 6, SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_bug_has_its_place(script):
    bugs = bugs_of(script)
    assert bugs
    assert not (lost := misplaced(bugs)), "\n".join(lost)


def test_a_table_keeps_line_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr("planted_bugs.__file__", str(tmp_path / "planted_bugs.py"))
    (tmp_path / "planted").mkdir()
    text = "# note\n\nline removed\nin a.cu\n-   x();\n-\n\ntwo lines\nin b.cu\n- a\n- b\n+ c\n+   d\n"
    (tmp_path / "planted" / "some.txt").write_text(text)
    assert table("some") == {"line removed": ("a.cu", "  x();\n", ""), "two lines": ("b.cu", "a\nb", "c\n  d")}


def test_a_lost_place_is_named():
    here = "python_tests/planted_bugs.py"
    assert misplaced({"gone": (here, "no such text", "")}) == [
        f"gone: the text to replace occurs 0 times in {here}: 'no such text'"
    ]
    assert "0 times in no/such/file" in misplaced({"moved": ("no/such/file", "x", "y")})[0]
    assert "by itself" in misplaced({"idle": (here, "def misplaced(", "def misplaced(")})[0]
