"""sLSTM on the CPU, forward and backward: ours, the official vanilla backend and torch.nn.LSTM, run by turns.

    python bench/slstm_cpu.py [--batch 8 --steps 256 --width 128 --heads 4 --threads N --rounds 9]

Pairs that do the same work: `cell` and `official cell`, the recurrence on given gate inputs; `xlstm_cuda.sLSTM` and
`torch.nn.LSTM`, which include the input projection; `layer` and `official layer`, with convolution, projections by head
and norm.
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

import xlstm_cuda
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
    ours, lstm = xlstm_cuda.sLSTM(D, D, batch_first=True, num_heads=NH), nn.LSTM(D, D, batch_first=True)

    def cell() -> None:
        h = functional.slstm(x, R, b, backend="cpu")
        torch.autograd.grad(h, (x, R, b), dh.view(B, S, NH, DH))

    def our_lstm() -> None:
        torch.autograd.grad(ours(tokens)[0], (tokens, *ours.parameters()), dh)

    def torch_lstm() -> None:
        torch.autograd.grad(lstm(tokens)[0], (tokens, *lstm.parameters()), dh)

    found: dict[str, Callable[[], object]] = {"cell": cell, "xlstm_cuda.sLSTM": our_lstm, "torch.nn.LSTM": torch_lstm}
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

    from xlstm.blocks.slstm import layer as official

    config = dict(embedding_dim=D, num_heads=NH, backend="vanilla", dtype="float32", dtype_b="float32")
    config["enable_automatic_mixed_precision"] = False
    layer = xlstm_cuda.sLSTMLayer(xlstm_cuda.sLSTMLayerConfig(**config))
    peer = official.sLSTMLayer(official.sLSTMLayerConfig(**config))
    peer.load_state_dict(layer.state_dict())

    def pass_through(module: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(module(tokens), (tokens, *module.parameters()), dh)

    return found | {"official cell": official_cell, "layer": pass_through(layer), "official layer": pass_through(peer)}


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
    ratio = times["xlstm_cuda.sLSTM"].minimum / times["torch.nn.LSTM"].minimum
    print(f"xlstm_cuda.sLSTM: {ratio:.2f} of torch.nn.LSTM's fastest time (goal: at most 2)")
    for ours in ("cell", "layer"):
        if f"official {ours}" in times:
            ratio = times[f"official {ours}"].minimum / times[ours].minimum
            print(f"{ours}: {ratio:.1f}x as fast as the official vanilla {ours}, fastest times (goal: at least 20)")


if __name__ == "__main__":
    main()
