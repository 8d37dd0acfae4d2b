"""docs/users.md is true where a program can tell: its examples run, its table names the versions that are installed here."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_cuda import integrations
from xlstm_cuda.integrations import patch

PAGE = Path(__file__).parents[1] / "docs" / "users.md"
if not PAGE.exists():
    pytest.skip("docs/ is only in a checkout", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)
PEERS = {
    "mlstm_kernels": "mlstm_kernels",
    "xlstm": "xlstm",
    "flashrnn": "flashrnn",
    "transformers": "transformers",
    "tirex": "tirex-ts",
}


def name_of(code: str) -> str:
    found = re.search(r"integrations\.(\w+)", code)
    return found[1] if found else "layers"


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"{number}-{name_of(code)}" for number, code in enumerate(EXAMPLES)])
def test_example_runs(code):
    name = name_of(code)
    if name in PEERS:
        module = "tirex.models.slstm.cell" if name == "tirex" else name
        pytest.importorskip(module, reason=f"the PyPI package {PEERS[name]} cannot be imported here", exc_type=ImportError)
    if name == "alias_xlstm":  # refused in a process that has imported xlstm
        subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
        return
    try:
        exec(compile(code, f"{PAGE.name}: {name}", "exec"), {})
    finally:
        for on in integrations.enabled():
            patch._handles[on].disable()


def test_examples_are_about_five_lines():
    lengths = [len([line for line in code.splitlines() if line and not line.startswith("import")]) for code in EXAMPLES]
    assert len(EXAMPLES) == 9 and max(lengths) <= 7  # a formatter breaks some calls over lines


@pytest.mark.parametrize("name", [name for name in PEERS if name != "tirex"])
def test_versions_in_the_table_are_those_that_are_tested(name):
    try:
        version = importlib.metadata.version(PEERS[name])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the PyPI package {PEERS[name]} is not installed here")
    row = re.search(rf"^\| \[{name}[^|]*\| ([^|]*) \|", TEXT, re.M)
    assert row and row[1] == version
