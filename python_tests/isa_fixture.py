"""The fixture ``isa``: a test runs once with the CPU kernels of each instruction set, where this processor has it."""

from __future__ import annotations

import pytest

from xlstm_cuda.native import _C

ISAS = [
    pytest.param(isa, marks=() if isa in _C.cpu_isas() else pytest.mark.skip(reason=f"this CPU has no {isa}"))
    for isa in ("baseline", "avx2", "avx512")
]


def isa_fixture():
    """For a test file: ``isa = isa_fixture()``. Its value is the name."""

    @pytest.fixture(name="isa", params=ISAS)
    def chosen(request) -> str:
        _C.select_cpu_isa(request.param)
        yield request.param
        _C.select_cpu_isa("")

    return chosen
