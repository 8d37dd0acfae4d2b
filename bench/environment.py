"""What a figure is worth nothing without: commit, versions, processor, GPU, threads, and how busy the machine was."""

from __future__ import annotations

import functools
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import xlstm_cuda
from xlstm_cuda.native import cpu_isa

from . import WAITING, checkout, peers
from .checkout import output_of


@functools.cache
def environment() -> dict[str, Any]:
    """The machine and the versions; the load is that before the first measurement."""
    found: dict[str, Any] = {
        "commit": checkout.commit(),
        "sources": checkout.sources(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "xlstm_cuda": xlstm_cuda.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
        "isa": cpu_isa(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "waiting": " ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ),
        "load": round(os.getloadavg()[0], 2),
        "peers": {name: version for name in peers.PEERS if (version := peers.version(name))},
    }
    if torch.cuda.is_available():
        found["gpu"] = gpu()
    return found


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def gpu() -> dict[str, Any]:
    """Name, driver and clocks as found; nothing is set."""
    fields = "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu"
    values = output_of("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader").split("\n")[0].split(", ")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        **dict(zip(fields, values)),
    }


def title(found: dict[str, Any]) -> str:
    """The machine in one line."""
    gpu_ = found.get("gpu")
    where = f"{gpu_['name']}, driver {gpu_.get('driver_version', '?')}" if gpu_ else f"{found['processor']}, {found['isa']}"
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    if found["threads"] > 1 and found.get("waiting"):  # how threads of OpenMP wait, as peers' do
        threads += f" ({found['waiting']})"
    return f"{where}; {threads} on {found['cores']} cores, load {found['load']}; torch {found['torch']}"
