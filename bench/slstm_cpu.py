"""sLSTM on the CPU, forward and backward: ours, the official vanilla backend and torch.nn.LSTM, run by turns.

    python bench/slstm_cpu.py [--batch 8 --steps 256 --width 128 --heads 4 --threads N --rounds 9]

Pairs that do the same work: `cell` is the recurrence on given gate inputs; `layer` adds the input projection,
which nn.LSTM includes.
Needs the official package for the comparison: pip install "xlstm_cuda[peers]".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.timing import interleaved, table
from xlstm_cuda import functional
from xlstm_cuda.native import cpu_isa


def variants(B: int, S: int, D: int, NH: int) -> dict[str, Callable[[], object]]:
    """Each runs forward and backward of a batch once."""
    torch.manual_seed(0)
    DH = D // NH
    x = torch.randn(B, S, 4, NH, DH, requires_grad=True)
    R = (torch.randn(4, NH, DH, DH) / DH**0.5 / 2).requires_grad_()
    b = torch.zeros(4, NH, DH, requires_grad=True)
    tokens = torch.randn(B, S, D, requires_grad=True)
    dh = torch.randn(B, S, D)
    project, lstm = nn.Linear(D, 4 * D), nn.LSTM(D, D, batch_first=True)

    def cell() -> None:
        h = functional.slstm(x, R, b, backend="cpu")
        torch.autograd.grad(h, (x, R, b), dh.view(B, S, NH, DH))

    def layer() -> None:
        h = functional.slstm(project(tokens).view(B, S, 4, NH, DH), R, b, backend="cpu")
        torch.autograd.grad(h, (tokens, R, b, *project.parameters()), dh.view(B, S, NH, DH))

    def torch_lstm() -> None:
        torch.autograd.grad(lstm(tokens)[0], (tokens, *lstm.parameters()), dh)

    found: dict[str, Callable[[], object]] = {"cell": cell, "layer": layer, "torch.nn.LSTM": torch_lstm}
    try:
        from xlstm.blocks.slstm.src import vanilla
    except ImportError:
        print("peer xlstm is not installed (requirements-peers.txt): no comparison with the official vanilla backend")
        return found

    def official_cell() -> None:
        states, _, _ = vanilla.slstm_forward(
            x.transpose(0, 1).reshape(S, B, 4 * D),
            torch.zeros(4, B, D),
            R.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH),
            b.reshape(-1),
            vanilla.slstm_pointwise_function_registry["slstm"],
            constants={},
        )
        torch.autograd.grad(states[0, 1:], (x, R, b), dh.transpose(0, 1))

    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    config = sLSTMLayerConfig(embedding_dim=D, num_heads=NH, backend="vanilla", dtype="float32", dtype_b="float32")
    config.enable_automatic_mixed_precision = False
    official = sLSTMLayer(config)

    def official_layer() -> None:
        torch.autograd.grad(official(tokens), (tokens, *official.parameters()), dh)

    return found | {"official cell": official_cell, "official layer": official_layer}


def agreement(B: int, S: int, D: int, NH: int) -> float:
    """Relative error of h on the CPU backend against the float64 reference, on the shape that is timed."""
    x = torch.randn(B, S, 4, NH, D // NH)
    R = torch.randn(4, NH, D // NH, D // NH) / (D // NH) ** 0.5 / 2
    with torch.no_grad():
        truth = functional.slstm(x.double(), R.double(), backend="reference")
        return ((functional.slstm(x, R, backend="cpu") - truth).norm() / truth.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("steps", 256), ("width", 128), ("heads", 4), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = options.batch, options.steps, options.width, options.heads

    found = variants(*shape)
    error = agreement(*shape)
    assert error < 1e-5, f"no time without agreement: h differs from the float64 reference by {error:.1e}"
    times = interleaved(found, options.rounds)

    print("sLSTM, CPU, float32, B{} S{} D{}, {} heads, forward + backward,".format(*shape), end=" ")
    print(f"{options.threads} threads, {cpu_isa()} (h agrees to {error:.0e})")
    print(table(times, "cell"))
    print(
        f"layer: {times['layer'].minimum / times['torch.nn.LSTM'].minimum:.2f} of torch.nn.LSTM's fastest time (goal: at most 2)"
    )
    for ours in ("cell", "layer"):
        if f"official {ours}" in times:
            ratio = times[f"official {ours}"].minimum / times[ours].minimum
            print(f"{ours}: {ratio:.1f}x as fast as the official vanilla {ours}, fastest times (goal: at least 20)")


if __name__ == "__main__":
    main()
