"""Each planted bug still finds its place: the text that it replaces stands once in the file it names."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in HERE.glob("*_mutants.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_planted_bugs_find_their_places(script):
    module = importlib.import_module(script)
    wrong = []
    for name, bug in module.MUTANTS.items():
        file, old, new = bug if len(bug) == 3 else (module.KERNEL, *bug)
        if not (HERE.parent / file).exists():
            pytest.skip("csrc/ is only in a checkout")
        count = (HERE.parent / file).read_text().count(old)
        if count != 1 or old == new:
            wrong.append(f"{name}: its text stands {count} times in {file}")
    assert not wrong, "\n".join(wrong)


def test_every_script_of_planted_bugs_is_looked_at():
    assert {"mlstm_mutants", "ptx_mutants", "simt_mutants"} <= set(SCRIPTS)
