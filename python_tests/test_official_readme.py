"""The examples in the README of `xlstm` 2.0.6 (its package description) run after changing the import."""

from __future__ import annotations

import ast
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch

try:
    README = metadata.metadata("xlstm").get_payload() or metadata.metadata("xlstm")["Description"]
except metadata.PackageNotFoundError:
    README = ""
needs_readme = pytest.mark.skipif(not README, reason="the PyPI package xlstm is the oracle (pip install '.[peers]')")

EXAMPLES = [code for code in re.findall(r"```python *\n(.*?)```", README, re.S) if re.search(r"^from xlstm", code, re.M)]


def with_our_import(code: str) -> str:
    """The import is changed, and the device where there is no GPU."""
    code = re.sub(r"^from xlstm(\.[\w.]+)? import", "from xlstm_cuda import", code, flags=re.M)
    return code if torch.cuda.is_available() else code.replace('.to("cuda")', '.to("cpu")')


@needs_readme
def test_the_readme_has_its_four_examples():
    assert [re.findall(r"\b(xLSTM\w+)\(", code)[-1] for code in EXAMPLES] == [
        "xLSTMLarge", "xLSTMBlockStack", "xLSTMBlockStack", "xLSTMLMModel",
    ]  # fmt: skip


@needs_readme
@pytest.mark.parametrize("index", range(4), ids=["Large", "stack", "stack from yaml", "LM from yaml"])
def test_example_of_the_official_readme_runs(index):
    code = with_our_import(EXAMPLES[index])
    assert "xlstm_cuda" in code
    *statements, last = ast.parse(code).body
    assert isinstance(last, ast.Expr) and isinstance(last.value, ast.Compare)  # e.g. y.shape == x.shape
    names = {"torch": torch}  # one example has no import of its own
    exec(compile(ast.Module(statements, []), "README", "exec"), names)
    if "out" in names:  # with return_last_states the example's output is (logits, state): its own last line fails
        names["out"], state = names["out"]
        assert len(state) == 6
    assert eval(compile(ast.Expression(last.value), "README", "eval"), names) is True


GUIDE = (Path(__file__).parents[1] / "docs" / "from-xlstm.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", GUIDE, re.S), ids=["model", "weights"])
def test_example_of_the_guide_for_users_of_xlstm_runs(code):
    pytest.importorskip("dacite", reason="pip install dacite")
    exec(compile(code, "from-xlstm.md", "exec"), {})
