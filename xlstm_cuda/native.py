"""The compiled modules: ``_C`` (CPU backend and CUDA kernels) and ``_simt`` (the CUDA kernels on the host executor)."""

from __future__ import annotations

import importlib
from types import ModuleType

ABI_VERSION = 8

try:
    _C: ModuleType = importlib.import_module("xlstm_cuda._C")
except ImportError as error:
    raise ImportError(
        "xlstm_cuda: the compiled module xlstm_cuda._C is missing. Install the package first, from a checkout with"
        " `pip install -c constraints-cpu.txt .` (no GPU) or `pip install .` (CUDA)."
    ) from error


def _check_abi(module: ModuleType) -> ModuleType:
    if module.abi_version != ABI_VERSION:
        raise ImportError(
            f"xlstm_cuda: {module.__name__} was built for other sources (abi {module.abi_version}, expected {ABI_VERSION});"
            " reinstall the package"
        )
    return module


_check_abi(_C)


def simt(variant: str = "") -> ModuleType:
    """The host executor's module, plain or one of its variants "_trace" and "_asan" (xlstm_cuda.simt chooses).

    ImportError, with the reason, where it was not built.
    """
    try:
        return _check_abi(importlib.import_module(f"xlstm_cuda._simt{variant}"))
    except ModuleNotFoundError as error:
        switch = "XLSTM_SIMT=ON" + (" XLSTM_SIMT_ASAN=ON" if variant == "_asan" else "")
        raise ImportError(f"the host executor's module _simt{variant} is not in this build; reinstall with {switch}") from error


def cpu_isa() -> str:
    """The instruction set that the CPU backend chose on this machine."""
    return _C.cpu_isa()
