"""Rules of csrc/ that no compiler and no formatter checks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h"))


def unbraced_pragmas(text: str) -> list[int]:
    """Lines of the pragmas that begin the body of a statement without braces."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    code = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    bodies = re.finditer(r"(?:\)|\belse)\s*\n(?:\s*\n|[ \t]*#[^\n]*\n)*?[ \t]*(?:#[ \t]*pragma|_Pragma)", code)
    return [code.count("\n", 0, found.end()) + 1 for found in bodies]


@pytest.mark.skipif(not CSRC.exists(), reason="csrc/ is only in a checkout")
def test_a_body_that_begins_with_a_pragma_has_braces():
    """nvcc (12.9 to 13.5) drops the statement after a discarded `if constexpr` whose body is not in braces and begins so."""
    found = [f"{path.relative_to(CSRC)}:{line}" for path in FILES for line in unbraced_pragmas(path.read_text())]
    assert not found, "put the body in braces: " + ", ".join(found)


@pytest.mark.parametrize(
    "head",
    ["if constexpr (DELTA)", "if (a && (b || c))", "else", "for (int i = 0; i < 4; ++i)", "while (f(x))", "} else"],
)
def test_the_rule_sees_a_missing_brace(head):
    pragma = "#pragma unroll\n    for (;;) x();\n"
    assert unbraced_pragmas(f"{head}\n{pragma}") == [2]
    assert unbraced_pragmas(f"{head}  // note\n\n#if X\n{pragma}") == [4]
    assert unbraced_pragmas(f"{head} {{\n{pragma}}}\n") == []


@pytest.mark.skipif(not CSRC.exists(), reason="csrc/ is only in a checkout")
@pytest.mark.parametrize("room", ["slstm", "python"])
def test_no_element_or_gate_is_what_is_left_over(room):
    """A switch over every value, with an error behind it; a value that is added later must not be taken for another."""
    left_over = re.compile(r"\bdefault:|== *(?:ElementType|ForgetGate|InputGate|KernelKind)::\w+\s*\?")
    files = [path for path in FILES if path.relative_to(CSRC).parts[0] == room]
    found = [f"{path.relative_to(CSRC)}: {match[0]}" for path in files for match in left_over.finditer(path.read_text())]
    assert files and not found


def test_the_rule_leaves_other_pragmas_alone():
    assert unbraced_pragmas("#pragma once\nint a;\n#pragma unroll\nfor (;;) {\n#pragma unroll 4\n  for (;;) {}\n}\n") == []
    assert unbraced_pragmas("template <class T>  // f(x)\n#pragma once\n") == []
