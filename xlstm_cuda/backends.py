"""The four backends of every operation: which are usable here, and which one a call gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import native

NAMES = ("cuda", "cpu", "simt", "reference")


@dataclass(frozen=True)
class Backend:
    """One backend on this machine. ``reason`` says why it is usable, or why not and what helps."""

    name: str
    usable: bool
    reason: str

    def __bool__(self) -> bool:
        return self.usable


def backends() -> dict[str, Backend]:
    """The backends by name, in the order cuda, cpu, simt, reference."""
    return {
        "cuda": _cuda(),
        "cpu": Backend("cpu", True, f"native C++ ({native.cpu_isa()})"),
        "simt": _simt(),
        "reference": Backend("reference", True, "plain PyTorch, step by step, any device and floating dtype"),
    }


def _cuda() -> Backend:
    if not native._C.cuda_architectures:
        return Backend("cuda", False, "this build has no CUDA kernels; reinstall with XLSTM_CUDA=ON where nvcc is")
    if not torch.cuda.is_available():
        build = "a CPU-only build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        return Backend("cuda", False, f"PyTorch sees no CUDA device (torch {torch.__version__}, {build})")
    major, minor = torch.cuda.get_device_capability()
    device = f"{torch.cuda.get_device_name()}, sm_{major}{minor}"
    if major < 8:
        return Backend("cuda", False, f"{device}: the kernels need sm_80 or newer")
    return Backend("cuda", True, f"{device}; kernels for {native._C.cuda_architectures}")


def _simt() -> Backend:
    try:
        native.simt()
    except ImportError as error:
        return Backend("simt", False, str(error))
    return Backend("simt", True, "the CUDA kernels on the host executor (for tests: slow and thorough)")


def resolve(backend: str | None, device: torch.device) -> str:
    """The backend that serves tensors on ``device``.

    ``None`` means cuda for CUDA tensors, cpu for CPU tensors and the reference elsewhere.

    Raises:
        ValueError: no backend has this name, or it does not take tensors of this device.
        RuntimeError: the backend is not usable on this machine (with the reason).
    """
    if backend is None:
        return {"cuda": "cuda", "cpu": "cpu"}.get(device.type, "reference")
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected None or one of {', '.join(map(repr, NAMES))}")
    if backend in ("cpu", "simt") and device.type not in ("cpu", "meta"):
        raise ValueError(f"backend {backend!r} takes CPU tensors, got tensors on {device}")
    if backend == "cuda" and device.type not in ("cuda", "meta"):
        if found := _cuda():
            raise ValueError(f"backend 'cuda' takes CUDA tensors, got tensors on {device}")
        raise RuntimeError(f"backend 'cuda' is not usable here: {found.reason}")
    if backend == "simt" and not torch.compiler.is_compiling() and not (found := _simt()):  # a compiler cannot trace an import
        raise RuntimeError(f"backend 'simt' is not usable here: {found.reason}")
    return backend
