"""The mLSTM cell on a CPU, forward and backward, against the official parallel backend and its memory against S.

    python bench/mlstm_cpu.py

Needs the official package for the comparison: pip install "xlstm_cuda[peers]".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import interleaved, table
from xlstm_cuda import functional

B, NH, D = 1, 4, 64


def operands(S: int) -> list[torch.Tensor]:
    """q, k, v, i, f; forget gates around 3, as trained models have them (around 0, h is an ill-conditioned quotient)."""
    q, k, v, i, f = (torch.randn(shape) for shape in [(B, S, NH, D)] * 3 + [(B, S, NH)] * 2)
    return [x.requires_grad_() for x in (q, k, v, i, f + 3)]


def ours(tensors: list[torch.Tensor]) -> torch.Tensor:
    return functional.mlstm(*tensors)


def official(tensors: list[torch.Tensor]) -> torch.Tensor:
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    q, k, v, i, f = (x.transpose(1, 2) for x in tensors)
    S = q.shape[2]
    causal = torch.ones(S, S, dtype=torch.bool).tril()
    return parallel_stabilized_simple(q, k, v, i[..., None], f[..., None], lower_triangular_matrix=causal).transpose(1, 2)


def peak_mebibytes(implementation: str, S: int) -> float:
    """Memory above the operands that one forward and backward pass needs at its peak, in a process of its own (Linux)."""
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); from bench import mlstm_cpu;"
               " mlstm_cpu.print_peak(sys.argv[2], int(sys.argv[3]))", root, implementation, str(S)]  # fmt: skip
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(implementation: str, S: int) -> None:
    function = {"ours": ours, "official": official}[implementation]
    tensors = operands(S)
    function(operands(128)).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    function(tensors).sum().backward()
    print((resident("VmHWM") - before) / 1024)


def resident(field: str) -> int:
    """Kibibytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    torch.manual_seed(0)
    print(f"mLSTM cell, CPU, {torch.get_num_threads()} threads, float32, B{B} NH{NH} D{D}, forward + backward")
    for S in (256, 1024, 2048):
        tensors = operands(S)
        a, b = ours(tensors), official(tensors)
        error = ((a - b).norm() / b.norm()).item()
        assert error < 1e-5, f"no time without agreement: the outputs differ by {error:.1e}"
        timings = interleaved(
            {
                "xlstm_cuda cpu": lambda tensors=tensors: ours(tensors).sum().backward(),
                "xlstm parallel": lambda tensors=tensors: official(tensors).sum().backward(),
            }
        )
        print(f"\nS {S} (outputs agree to {error:.0e})\n{table(timings, 'xlstm_cuda cpu')}")
    print("\npeak memory of forward + backward, MiB")
    for S in (1024, 2048, 4096, 8192):
        line = "  ".join(f"{name} {peak_mebibytes(name, S):7.0f}" for name in ("ours", "official"))
        print(f"S {S:5}  {line}")


if __name__ == "__main__":
    main()
