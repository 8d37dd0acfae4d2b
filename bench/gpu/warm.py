"""Peers compile their kernels on first use: each once at a small shape, in a process and with a time limit of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from ..contenders import Case, Contender, Unusable
from ..measure import call_of
from ..suites import SUITES

SECONDS = {"flashrnn cuda_fused": 60, "flashrnn triton_fused": 25, "xlstm cuda": 60}


def compiled_peers(device: torch.device) -> dict[str, tuple[Case, Contender]]:
    """Contender and a case of the sLSTM suite by name."""
    first = SUITES["slstm"](device, True)[1]
    return {one.name: (first, one) for one in first.contenders if one.name in SECONDS}


def main() -> int:
    device = torch.device("cuda")
    if len(sys.argv) > 1:
        case, contender = compiled_peers(device)[sys.argv[1]]
        try:
            call_of(contender.build(case.gate_shape, device, case.dtype), case.backward)()
        except Unusable as reason:
            print(reason)
            return 1
        torch.cuda.synchronize()
        return 0
    for name in compiled_peers(device):
        started = time.monotonic()
        try:
            done = subprocess.run([sys.executable, "-m", "bench.gpu.warm", name], timeout=SECONDS[name])
            result = f"exit status {done.returncode}" if done.returncode else "ready"
        except subprocess.TimeoutExpired:
            result = "timed out"
        print(f"{name}: {result} after {time.monotonic() - started:.0f} s", flush=True)
    return 0  # a peer that does not compile is missing from the tables, with its reason, and no failure of ours


if __name__ == "__main__":
    raise SystemExit(main())
