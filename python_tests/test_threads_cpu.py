"""Whose threads the CPU backend works on: PyTorch's own where they spin between loops, else a pool; in a forked process too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, signal, torch
from xlstm_cuda import functional

torch.set_num_threads(2)
x = [torch.randn(1, 64, 4, *d) for d in ((64,), (64,), (64,), (), ())]
torch.randn(1 << 22).exp()  # PyTorch's threads are there
before = len(os.listdir("/proc/self/task"))
h = functional.mlstm(*x)
print(len(os.listdir("/proc/self/task")) - before, end=" ")
if (child := os.fork()) == 0:
    signal.alarm(20)
    os._exit(0 if functional.mlstm(*x).equal(h) else 1)
print(os.waitpid(child, 0)[1], end=" ")
torch.set_num_threads(1)
print(functional.mlstm(*x).equal(h))
"""
OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="this PyTorch has no OpenMP")
@pytest.mark.parametrize(
    "chosen,own_threads",
    [({}, 0), ({"OMP_WAIT_POLICY": "active"}, 0), ({"OMP_WAIT_POLICY": "passive"}, 1), ({"GOMP_SPINCOUNT": "0"}, 1),
     ({"OMP_THREAD_LIMIT": "1"}, 0)],  # fewer threads than asked for do the work of all
    ids=str,
)  # fmt: skip
def test_threads_are_pytorchs_where_they_spin_and_a_forked_process_has_its_own(chosen, own_threads):
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP} | chosen
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.split() == [str(own_threads), "0", "True"]
