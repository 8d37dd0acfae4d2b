"""docs/troubleshooting.md has every error message of the library and of its launchers, and no message that nobody says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
if not PAGE.is_file():
    pytest.skip("docs/ is only in a checkout", allow_module_level=True)
GAP = "\x00"  #: what changes from case to case
LAUNCHERS = ("python", "mlstm", "slstm", "cpu", "device")  #: folders of csrc whose errors a user can see


def template(message: ast.expr) -> str:
    """The text of a message, with gaps for what is put in."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(template(part) for part in message.values)
    if isinstance(message, ast.BinOp):
        return template(message.left) + template(message.right)
    return GAP


def said_by_python() -> Iterator[tuple[str, str]]:
    """Place and template of every exception that the library and its command line raise."""
    for file in sorted((ROOT / "xlstm_cuda").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", template(node.exc.args[0])


def said_by_launchers() -> Iterator[tuple[str, str]]:
    """The same of the C++ that Python calls."""
    for folder in LAUNCHERS:
        for file in sorted(path for path in (ROOT / "csrc" / folder).rglob("*.*") if path.is_file()):
            text = file.read_text(encoding="utf-8")
            for found in re.finditer(r"\bthrow (?:std|py|pybind11)::(?!bad_alloc|error_already_set)\w+\((.*?)\);", text, re.S):
                parts = re.split(r'("(?:[^"\\]|\\.)*")', found[1])
                message = "".join(
                    part[1:-1] if part.startswith('"') else GAP * (part.strip() not in ("", "std::string(")) for part in parts
                )
                yield f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}", re.sub(f"{GAP}+", GAP, message)


def rows() -> list[tuple[str, str]]:
    """Pattern and remedy of every row of the tables."""
    return re.findall(r"^\| `([^|]+)`[^|`]* \|[^|]+\| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)


def words(text: str) -> int:
    return len(set(re.findall(r"[a-z]{2,}", text, re.I)) - {"got", "expected"})


def matches(row: str, message: str) -> bool:
    """Whether a row, with `...` for anything, is this message, and says at least half of its words."""
    return 2 * words(row) >= words(message) and matches_in_form(row, message)


def matches_in_form(row: str, message: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, row.split("..."))), message.replace("`", "").replace(GAP, "…"), re.S) is not None


SAID = [*said_by_python(), *said_by_launchers()]


def test_messages_are_found():
    assert len(SAID) > 150
    assert ("xlstm_cuda/checks.py", f"{GAP}: got {GAP}, expected a torch.Tensor") in {
        (place.split(":")[0], text) for place, text in SAID
    }


def test_every_message_has_a_row():
    patterns = [row for row, _ in rows()]
    missing = [f"{place}: {text.replace(GAP, '...')}" for place, text in SAID if not any(matches(row, text) for row in patterns)]
    assert not missing, "\n".join(missing)


def test_a_general_row_does_not_hide_a_new_message():
    assert not matches("...: got ..., expected ...", f"{GAP}: got {GAP}, expected a prime number of heads")
    assert matches("...: got ..., expected at least 1", f"{GAP}: got {GAP}, expected at least 1")


def test_every_row_is_said():
    stale = [row for row, _ in rows() if not row.startswith("simt: deadlock") and not any(matches(row, text) for _, text in SAID)]
    assert not stale, "\n".join(stale)
