"""The four backends of every operation: which are usable here, and which one a call gets."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch._guards import detect_fake_mode

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
    """The backends by name, in the order cuda, cpu, simt, reference.

    Examples:
        >>> list(backends())
        ['cuda', 'cpu', 'simt', 'reference']
        >>> backends()["cpu"].usable
        True
    """
    return {
        "cuda": _cuda(),
        "cpu": Backend("cpu", True, f"native C++ ({native.cpu_isa()})"),
        "simt": _simt(),
        "reference": Backend("reference", True, "plain PyTorch, step by step, any device and floating dtype"),
    }


def _cuda() -> Backend:
    if problem := _without_kernels() or _without_devices():
        return Backend("cuda", False, problem)
    index = torch.cuda.current_device()
    if problem := cuda_problem(index):
        return Backend("cuda", False, problem)
    return Backend("cuda", True, f"{_device_name(index)}; kernels for {native._C.cuda_architectures}")


def _without_kernels() -> str:
    if native._C.cuda_architectures:
        return ""
    return "this build has no CUDA kernels; reinstall with XLSTM_CUDA=ON where nvcc is"


def _without_devices() -> str:
    if torch.cuda.is_available():
        return ""
    build = "a CPU-only build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    return f"PyTorch sees no CUDA device (torch {torch.__version__}, {build})"


def _device_name(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"


class _Passing(Exception):
    """A problem that may be gone the next time: exceptions are not kept by the cache."""


def cuda_problem(index: int) -> str:
    """Why the kernels cannot run on this CUDA device, and what helps; "" where they can. A lasting answer is asked for once."""
    try:
        return _lasting_cuda_problem(index)
    except _Passing as problem:
        return str(problem)


@functools.cache
def _lasting_cuda_problem(index: int) -> str:
    if problem := _without_kernels():
        return problem
    device, (major, minor) = _device_name(index), torch.cuda.get_device_capability(index)
    if major < 8:
        return f"{device}: the kernels need sm_80 or newer"
    error, words = native._C.cuda_problem(index)
    if not error:
        return ""
    cuda = f"{native._C.cuda_version // 1000}.{native._C.cuda_version % 1000 // 10}"
    if error == "cudaErrorInsufficientDriver":
        return (
            f"the NVIDIA driver is too old for the CUDA {cuda} that this build was made with ({words}); update the driver, or"
            " reinstall where an older nvcc is"
        )
    if error in ("cudaErrorNoKernelImageForDevice", "cudaErrorInvalidDeviceFunction", "cudaErrorUnsupportedPtxVersion"):
        return (
            f"{device}: this build has no code for it, only for {native._C.cuda_architectures} ({words}); reinstall from source"
            f" with CUDAARCHS={major}{minor} XLSTM_CUDA=ON"
        )
    raise _Passing(f"{device}: {error}: {words}")


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
        RuntimeError: the backend is not usable on this machine, or not on this device (with the reason and what helps).
    """
    if backend is None:
        backend = {"cuda": "cuda", "cpu": "cpu"}.get(device.type, "reference")
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected None or one of {', '.join(map(repr, NAMES))}")
    if backend in ("cpu", "simt") and device.type not in ("cpu", "meta"):
        raise ValueError(f"backend {backend!r} takes CPU tensors, got tensors on {device}")
    if backend == "cuda" and device.type not in ("cuda", "meta"):
        if found := _cuda():
            raise ValueError(f"backend 'cuda' takes CUDA tensors, got tensors on {device}")
        raise RuntimeError(f"backend 'cuda' is not usable here: {found.reason}")
    if backend == "cuda" and device.type == "cuda" and not torch.compiler.is_compiling():
        problem = cuda_problem(device.index or 0)
        if problem and not detect_fake_mode():  # tensors without memory: nothing runs
            raise RuntimeError(f"backend 'cuda' is not usable here: {problem} (backend='reference' takes CUDA tensors anywhere)")
    if backend == "simt" and not torch.compiler.is_compiling() and not (found := _simt()):  # a compiler cannot trace an import
        raise RuntimeError(f"backend 'simt' is not usable here: {found.reason}")
    return backend
