"""A command shares its machine: as many threads as the process may use, and none that spins while it waits.

OpenMP's threads spin between loops. Beside other busy processes that takes the processor from the very thread they wait for, and
everything crawls. OpenMP reads its variables when PyTorch is imported, so they are set before.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  #: any of these is the user's choice of how to wait
THREADS = "OMP_NUM_THREADS"


def share_the_machine() -> None:
    """Sets what the user has not set; child processes inherit it."""
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    present, quota = _present(), cpu_quota()
    usable = present if quota is None else min(present, math.ceil(quota))
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")  # the processes that torchrun has started on this machine
    if beside.isdecimal() and int(beside) > 1:
        if os.environ.get(THREADS, "1") == "1":  # torchrun's own choice, which knows neither the machine nor the command
            os.environ[THREADS] = str(max(1, usable // int(beside)))
    elif THREADS not in os.environ and usable < present:
        os.environ[THREADS] = str(usable)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors that the process's control groups allow it on average, 1.5 in a container with 1.5 CPUs; None: no limit."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            quotas += _along(root / "sys/fs/cgroup", group, _version_2)
        elif "cpu" in controllers.split(","):
            quotas += _along(root / "sys/fs/cgroup/cpu", group, _version_1)
    return min(quotas, default=None)


def _along(mount: Path, group: str, read: Callable[[Path], tuple[int, int]]) -> list[float]:
    """Limits of the group and of every group around it. A container may see its own group as the mount itself."""
    path = mount / group.strip("/")
    found = []
    for folder in (path, *path.parents):
        try:
            quota, period = read(folder)
        except (OSError, ValueError):
            pass
        else:
            if quota > 0 and period > 0:
                found.append(quota / period)
        if folder == mount:
            break
    return found


def _version_2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)  # "max" is no limit, and no number


def _version_1(folder: Path) -> tuple[int, int]:
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)  # -1 is no limit


def _present() -> int:
    """Processors that the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
