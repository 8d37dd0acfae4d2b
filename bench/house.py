"""How short the way from Python to the kernels is: `python -m bench.house` prints the measures that the tests hold.

An option of `mlstm()` is traced by its name through everything that only passes it on: the function, the ops, the bindings and
the parameter structs. Code that computes with it (kernels, the CPU's loops, the reference) is not counted.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .checkout import ROOT

OPTION = "eps"
CORRIDOR = (
    "xlstm_cuda/functional.py", "xlstm_cuda/ops/**/*.py", "csrc/python/*", "csrc/mlstm/params.h", "csrc/cpu/mlstm*.h",
)  # fmt: skip
USES_IT = ("csrc/cpu/mlstm_gates.h",)  # the normaliser of the CPU
BINDINGS, READER = ("csrc/python/*.cpp", "csrc/python/bind.h"), ("csrc/python/reader.h", "csrc/python/spelling.h")
LONG_LIST = 8  #: names; a longer list is written once


def files(*patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def lines_of_option(name: str = OPTION) -> list[str]:
    """Every line of the corridor that names the option."""
    word = re.compile(rf"\b{name}\b")
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(*CORRIDOR)
        if path.relative_to(ROOT).as_posix() not in USES_IT
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line)
    ]


def line_count(*patterns: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in files(*patterns))


def _functions(folder: str) -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in files(f"{folder}/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    a = function.args
    optional = [one for one in (a.vararg, a.kwarg) if one]
    return [one for one in (*a.posonlyargs, *a.args, *a.kwonlyargs, *optional) if one.arg not in ("self", "cls")]


def repeated_lists(folder: str = "xlstm_cuda/ops") -> list[str]:
    """Runs of more than LONG_LIST parameter names in this order in two functions."""
    runs: Counter[tuple[str, ...]] = Counter()
    for _, function in _functions(folder):
        names = [one.arg for one in _parameters(function)]
        runs.update({tuple(names[k : k + LONG_LIST + 1]) for k in range(len(names) - LONG_LIST)})
    return [", ".join(names) for names, count in runs.items() if count > 1]


def untyped_functions(folder: str = "xlstm_cuda/ops") -> list[str]:
    """Functions with a parameter or a result that has no type; `mypy` holds the rest of what it calls strict."""
    return [
        f"{path.relative_to(ROOT)}:{function.lineno}: {function.name}"
        for path, function in _functions(folder)
        if (function.returns is None and function.name != "__init__")
        or any(one.annotation is None for one in _parameters(function))
    ]


def main() -> None:
    option = lines_of_option()
    print(f"an option of mlstm() on the way to what uses it: {OPTION} stands on {len(option)} lines (at most 15)")
    for line in option:
        print(f"    {line}")
    print(f"bindings: {line_count(*BINDINGS)} lines (at most 250), made short by a reader of {line_count(*READER)} lines")
    print(f"parameter lists of more than {LONG_LIST} names written twice in xlstm_cuda/ops: {len(repeated_lists())} (none)")
    print(f"functions without full types in xlstm_cuda/ops: {len(untyped_functions())} (none)")


if __name__ == "__main__":
    main()
