"""``python -m xlstm_cuda info``: what this installation is, what it can run here, and why it cannot run the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from .. import __version__, native
from ..backends import backends


def run(options: argparse.Namespace) -> None:
    """The command."""
    report = collect()
    print(json.dumps(report, indent=2) if options.json else as_text(report))


def collect() -> dict[str, Any]:
    """The report, section by section. A section that fails says so and leaves the others alone."""
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": _versions,
        "devices": _devices,
        "backends": _backends,
        "build": _build,
        "sLSTM kernels": _slstm_kernels,
        "threads": _threads,
    }
    report = {}
    for name, section in sections.items():
        try:
            report[name] = section()
        except Exception as error:  # whatever is broken is what the reader wants to learn
            report[name] = {"error": f"{type(error).__name__}: {error}"}
    return report


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    blocks = []
    for section, entries in report.items():
        width = max(map(len, entries))
        lines = [f"  {name:<{width}}  {_line(value)}" for name, value in entries.items()]
        blocks.append("\n".join([section, *lines]))
    return "\n\n".join(blocks)


def _line(value: Any) -> str:
    if isinstance(value, dict):  # a backend
        return f"{'usable    ' if value['usable'] else 'not usable'}  {value['reason']}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _versions() -> dict[str, Any]:
    cuda = torch.version.cuda
    return {
        "xlstm_cuda": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": f"{torch.__version__} ({'built without CUDA' if cuda is None else f'built for CUDA {cuda}'})",
        "numpy": _version("numpy"),
        "matplotlib": _version("matplotlib"),
        "compiler": native._C.compiler,
        "system": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, Any]:
    devices: dict[str, Any] = {"cpu": _processor()}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            devices[f"cuda:{index}"] = f"{about.name}, sm_{about.major}{about.minor}, {about.total_memory / 2**30:.0f} GiB"
    else:
        devices["cuda"] = "PyTorch sees none"
    devices["cuda seen by the kernels"] = native._C.device_count()
    return devices


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _backends() -> dict[str, Any]:
    return {name: {"usable": found.usable, "reason": found.reason} for name, found in backends().items()}


def _build() -> dict[str, Any]:
    module = native._C
    version = module.cuda_version
    return {
        "module": module.__file__,
        "CUDA kernels": bool(module.cuda_architectures),
        "CUDA version": f"{version // 1000}.{version % 1000 // 10}" if version else None,
        "CUDA architectures": module.cuda_architectures,
        "simt executor": importlib.util.find_spec("xlstm_cuda._simt") is not None,
        "CPU instruction set": native.cpu_isa(),
        "PyTorch's CPU instruction set": torch.backends.cpu.get_cpu_capability(),
    }


def _slstm_kernels() -> dict[str, Any]:
    """The table that csrc/slstm/choice.cu chooses by: the first line that fits serves a head dim."""
    try:
        module = native._C if hasattr(native._C, "slstm_kernel_table") else native.simt()
    except ImportError:
        return {"in this build": False}
    return {
        f"{dtypes}, head dim to {DH}, sm_{architecture}+ with {shared // 1024} KiB": kernel
        for kernel, dtypes, DH, architecture, shared in module.slstm_kernel_table()
    }


def _threads() -> dict[str, Any]:
    return {
        "torch": torch.get_num_threads(),
        "torch between operations": torch.get_num_interop_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }
