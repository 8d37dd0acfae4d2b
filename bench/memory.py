"""Peak memory of a call above its operands: on a CPU in a process of its own, from the kernel's account of it (Linux)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .contenders import Case, Contender
from .measure import call_of
from .records import Record

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def records_of(
    cases: Sequence[Case], timed: Sequence[Record], device: torch.device, quick: bool, show: Callable[[str], None]
) -> list[Record]:
    """The peaks of every contender in the cases where it was timed."""
    found = []
    contenders = {contender.name: contender for case in cases for contender in case.contenders}
    times = {(record.contender, record.case): record for record in timed if record.metric == "time"}
    for name, contender in contenders.items():
        mine = [case for case in cases if (name, case.name) in times]
        show(f"peak memory: {name}")
        if device.type == "cuda":
            peaks = {case.name: peak_cuda(case, contender, device) for case in mine}
        else:
            peaks = peaks_cpu(name, mine, quick)
        for case in mine:
            if case.name in peaks:
                value = peaks[case.name]
                time = times[name, case.name]
                found.append(replace(time, metric="memory", median=value, minimum=value, maximum=value, runs=1, ratios={}))
    return found


def peaks_cpu(contender: str, cases: Sequence[Case], quick: bool) -> dict[str, float]:
    """MiB by case, empty where this is not Linux. One process for all cases; freed blocks go back to the system at once."""
    if not RESET.exists() or not cases:
        return {}
    options = ["--quick"] * quick + ["--threads", str(torch.get_num_threads())]
    command = [sys.executable, "-m", "bench.memory", cases[0].suite, contender, *(case.name for case in cases), *options]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_cuda(case: Case, contender: Contender, device: torch.device) -> float:
    """MiB that the allocator held at most during one call, above what it held before."""
    call = call_of(contender.build(case.shape, device, case.dtype), case.backward)
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def resident(field: str) -> int:
    """Kibibytes of this process: VmRSS now, VmHWM at most since the last reset."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field))


def main() -> None:
    """Prints the peaks of one contender as JSON: the process that `peaks_cpu` starts."""
    from .suites import find

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("suite")
    parser.add_argument("contender")
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, found = torch.device("cpu"), {}
    for name in options.cases:
        case = find(options.suite, name, device, options.quick)
        contender = next(one for one in case.contenders if one.name == options.contender)
        call_of(contender.build(case.gate_shape, device, case.dtype), case.backward)()  # libraries, threads, first uses
        call = call_of(contender.build(case.shape, device, case.dtype), case.backward)
        RESET.write_text("5")
        before = resident("VmRSS")
        call()
        found[name] = (resident("VmHWM") - before) / 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
