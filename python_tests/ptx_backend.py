"""The tests of backend "simt" on what nvcc made of the kernels: `python -m pytest --ptx=90a FILES` (docs/ptx.md).

With the option, a launch on backend "simt" goes to `xlstm_cuda._ptx`, where an interpreter runs nvcc's PTX; the options of
`xlstm_cuda.simt` that mean something there are passed on. Everything else about a test stays as it is, its name included.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NamedTuple

import pytest

from xlstm_cuda import native, simt


class Card(NamedTuple):
    """Which PTX a GPU would run, and its limits."""

    target: str
    architecture: int
    processors: int
    shared_kib: int


CARDS = {
    80: Card("80", 80, 108, 163),
    86: Card("80", 86, 84, 99),
    87: Card("80", 87, 16, 163),
    89: Card("80", 89, 128, 99),
    90: Card("90a", 90, 132, 227),
}  #: by simt.options(sm=...)
NEWER = {"100f": (90, Card("100f", 100, 148, 227)), "120f": (89, Card("120f", 120, 170, 99))}  #: played in place of an sm
TARGETS = ("80", "90a", *NEWER)
NOT_MODELLED = {
    "test_wgmma": "ptx: the interpreter has no wgmma, which no kernel calls",
    "test_mlstm_tiles_are_those_of_the_code": "ptx: the module has no PTX of compute_86",
    "test_bulk_load": "ptx: the interpreter has no bulk copies, which no kernel calls",
}  #: tests that cannot run here, and why


def not_here(item: pytest.Function) -> str:
    """Why a test cannot run on the PTX that is played, or nothing."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if "cluster" in map(str, parameters) and simt.current().sm < 90:
        return "ptx: this GPU has no clusters"
    return NOT_MODELLED.get(item.originalname, "")


def load() -> ModuleType:
    """The interpreter's module; ImportError, with the reason, where it was not built."""
    try:
        return native._check_fields(importlib.import_module("xlstm_cuda._ptx"))
    except ModuleNotFoundError as error:
        raise ImportError("the PTX interpreter _ptx is not in this build; reinstall with XLSTM_PTX=ON where nvcc is") from error


def configure(module: ModuleType, card: Card, **changes: object) -> None:
    """Sets how the launches that follow run.

    From the environment: XLSTM_PTX_STARVE=0 (fair schedules only; otherwise one warp or block at a time is held back for long),
    XLSTM_PTX_RACES=1 (report accesses that nothing orders), XLSTM_PTX_READS=0 (do not report uses of what nobody wrote).
    """
    options: dict[str, object] = dict(
        target=card.target,
        architecture=card.architecture,
        processors=card.processors,
        shared_limit=card.shared_kib * 1024,
        seed=1,
        late=True,
        starve=os.environ.get("XLSTM_PTX_STARVE") != "0",
        reads=os.environ.get("XLSTM_PTX_READS") != "0",
        races=os.environ.get("XLSTM_PTX_RACES") == "1",
        float32_products=False,
    )
    module.ptx_configure(**{**options, **changes})


def play(target: str) -> None:
    """From now on backend "simt" is nvcc's PTX of ``target``; tests that ask for another GPU with simt.options get its PTX."""
    interpreter = load()
    if target not in interpreter.targets:
        raise ImportError(
            f"_ptx holds PTX of {', '.join(interpreter.targets)}; rebuild with XLSTM_PTX_ARCHITECTURES=...;{target}"
        )
    interpreter.ptx_watch_allocations()
    cards = dict(CARDS)
    sm = 80 if target == "80" else 90
    if target in NEWER:
        sm, cards[sm] = NEWER[target]

    def module() -> ModuleType:
        asked = simt.current()
        if asked.mma == "hopper" or asked.races or asked.sanitize or simt._launches is not None:
            pytest.skip("ptx: the interpreter has no truncating products, no profile; races are XLSTM_PTX_RACES=1")
        if asked.largest_cluster != simt.Options.largest_cluster:
            pytest.skip("ptx: every cluster of the architecture fits; what fits is asked once per device and kernel")
        configure(
            interpreter,
            cards[asked.sm],
            seed=asked.seed,
            late=asked.landing != "early",
            float32_products=asked.mma == "float32",
        )
        return interpreter

    def executor(variant: str = "") -> ModuleType:
        if variant:
            simt._launches = None  # simt.profile has begun, and is not there to end when a skip leaves it
            pytest.skip(f"ptx: this test is about the host executor's module _simt{variant}")
        return interpreter

    simt._current = simt.replace(simt._current, sm=sm)
    simt.module = module
    native.simt = executor
