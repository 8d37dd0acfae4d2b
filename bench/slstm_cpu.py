"""sLSTM on the CPU, forward and backward: ours, the official vanilla backend and torch.nn.LSTM, run by turns.

    python bench/slstm_cpu.py [--batch 8 --steps 256 --width 128 --heads 4 --threads N --rounds 9]

Pairs that do the same work: `cell` is the recurrence on given gate inputs; `layer` adds the input projection, which nn.LSTM includes.
The time of a variant is its fastest round: rounds interleave the variants, so a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("steps", 256), ("width", 128), ("heads", 4), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    found = variants(options.batch, options.steps, options.width, options.heads)
    times = {name: float("inf") for name in found}
    for round_ in range(options.rounds + 1):
        for name, function in found.items():
            start = time.perf_counter()
            function()
            if round_ > 0:  # the first one warms up
                times[name] = min(times[name], time.perf_counter() - start)

    print(f"B{options.batch} S{options.steps} D{options.width}, {options.heads} heads, {options.threads} threads, {cpu_isa()}")
    for name, seconds in times.items():
        print(f"{name:16}{seconds * 1e3:9.2f} ms forward+backward")
    print(f"layer takes {times['layer'] / times['torch.nn.LSTM']:.2f} of the time of torch.nn.LSTM (goal: at most 2)")
    for ours in ("cell", "layer"):
        if f"official {ours}" in times:
            print(f"{ours} is {times[f'official {ours}'] / times[ours]:.1f}x the official vanilla {ours} (goal: at least 20)")


if __name__ == "__main__":
    main()
