"""The fixture ``backend``: a test runs once with each of the backends that its file names, where they are usable."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

ALL = ("reference", "cpu", "simt", "cuda")
NATIVE = ("cpu", "simt", "cuda")  #: every backend that does not run plain PyTorch
KERNELS = ("simt", "cuda")  #: those that run the CUDA kernels


def backend_fixture(names: Sequence[str]):
    """For a test file: ``backend = backend_fixture(KERNELS)``. Its value is the name; unusable here: skipped, with the reason."""

    @pytest.fixture(name="backend", params=names)
    def one_of(request) -> str:
        from xlstm_cuda import backends  # not before a test needs it: conftest.py chooses what backend "simt" is

        found = backends()[request.param]
        if not found:
            pytest.skip(found.reason)
        return request.param

    return one_of
