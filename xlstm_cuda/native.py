"""The compiled modules: ``_C`` (CPU backend and CUDA kernels) and ``_simt`` (the CUDA kernels on the host executor)."""

from __future__ import annotations

import importlib
from types import ModuleType

try:
    _C: ModuleType = importlib.import_module("xlstm_cuda._C")
except ImportError as error:
    raise ImportError(
        "xlstm_cuda: the compiled module xlstm_cuda._C is missing. Install the package first, from a checkout with"
        " `pip install -c constraints-cpu.txt .` (no GPU) or `pip install .` (CUDA)."
    ) from error


def _check_fields(module: ModuleType) -> ModuleType:
    """Both modules have the same parameter structs; that these are the ones the Python files fill is checked at every call."""
    if getattr(module, "fields", None) != _C.fields:
        raise ImportError(
            f"xlstm_cuda: {module.__name__} and {_C.__name__} were built of different sources; reinstall the package"
        )
    return module


def simt(variant: str = "") -> ModuleType:
    """The host executor's module, plain or one of its variants "_trace" and "_asan" (xlstm_cuda.simt chooses).

    ImportError, with the reason, where it was not built.
    """
    try:
        return _check_fields(importlib.import_module(f"xlstm_cuda._simt{variant}"))
    except ModuleNotFoundError as error:
        switch = "XLSTM_SIMT=ON" + (" XLSTM_SIMT_ASAN=ON" if variant == "_asan" else "")
        raise ImportError(f"the host executor's module _simt{variant} is not in this build; reinstall with {switch}") from error


def cpu_isa() -> str:
    """The instruction set that the CPU backend chose on this machine."""
    return _C.cpu_isa()
