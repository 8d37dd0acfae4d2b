"""The sLSTM: the recurrence on given gate inputs, and the layers that take torch.nn.LSTM's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import xlstm_cuda
from xlstm_cuda import functional

from .. import peers
from ..contenders import Build, Case, Contender, Prepared, Shape
from ..draw import Normal


def operands(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """x (B, S, 4, NH, DH), R (4, NH, DH, DH), b (4, NH, DH), rounded to what every contender can read."""
    B, S, NH, DH = (shape[axis] for axis in ("B", "S", "NH", "DH"))
    normal = Normal(device)
    sizes = {"x": (B, S, 4, NH, DH), "R": (4, NH, DH, DH), "b": (4, NH, DH)}
    tensors = {name: normal(*size) for name, size in sizes.items()}
    tensors["R"] /= 2 * DH**0.5
    return {name: x.bfloat16().to(dtype).requires_grad_() for name, x in tensors.items()}


def ours(backend: str | None = None) -> Build:
    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        leaves = operands(shape, device, dtype)
        return Prepared(lambda: functional.slstm(*leaves.values(), backend=backend), leaves)  # type: ignore[arg-type, return-value]

    return build


def flashrnn(backend: str) -> Build:
    """flashrnn.flashrnn as its README calls it; it compiles on first use."""

    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        call = peers.load("flashrnn").flashrnn
        leaves = operands(shape, device, dtype)
        name = str(dtype).removeprefix("torch.")
        return Prepared(lambda: call(*leaves.values(), function="slstm", backend=backend, dtype=name)[0][0], leaves)

    return build


def official(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """The recurrence of the official package's "vanilla" backend."""
    vanilla = peers.load("xlstm.blocks.slstm.src.vanilla")
    leaves = operands(shape, device, dtype)
    B, S, NH, DH = (shape[axis] for axis in ("B", "S", "NH", "DH"))

    def forward() -> Tensor:
        x, R, b = leaves.values()
        states, _, _ = vanilla.slstm_forward(
            x.transpose(0, 1).reshape(S, B, 4 * NH * DH),
            torch.zeros(4, B, NH * DH, device=device, dtype=dtype),
            R.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH),
            b.reshape(-1),
            vanilla.slstm_pointwise_function_registry["slstm"],
            constants={},
        )
        return states[0, 1:].transpose(0, 1).reshape(B, S, NH, DH)

    return Prepared(forward, leaves)


def official_cuda(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """The official cell on its CUDA kernels, which nvcc compiles on first use."""
    cell = peers.load("xlstm.blocks.slstm.cell")
    NH, DH = shape["NH"], shape["DH"]
    name = str(dtype).removeprefix("torch.")
    config = cell.sLSTMCellConfig(hidden_size=NH * DH, num_heads=NH, backend="cuda", dtype=name, batch_size=shape["B"])
    module = cell.sLSTMCell(config).to(device)
    leaves = operands(shape, device, dtype)
    x = leaves["x"]
    with torch.no_grad():
        module._recurrent_kernel_.copy_(leaves["R"].permute(1, 3, 0, 2).reshape(module._recurrent_kernel_.shape))
        module._bias_.copy_(leaves["b"].transpose(0, 1).reshape(module._bias_.shape))
    return Prepared(lambda: module(x.flatten(2))[0].transpose(1, 2), {"x": x})


def layer(make: object) -> Build:
    """A layer of nn.LSTM's contract on x (B, S, D), with D inputs and D units."""

    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        torch.manual_seed(0)
        B, S, D = shape["B"], shape["S"], shape["NH"] * shape["DH"]
        module = make(D, shape["NH"]).to(device, dtype)  # type: ignore[operator]
        x = Normal(device)(B, S, D).to(dtype).requires_grad_()
        return Prepared(lambda: module(x)[0], {"x": x, **dict(module.named_parameters())})

    return build


def nn_lstm(D: int, NH: int) -> nn.Module:
    return nn.LSTM(D, D, batch_first=True)


def slstm_layer(D: int, NH: int) -> nn.Module:
    return xlstm_cuda.sLSTM(D, D, batch_first=True, num_heads=NH)


def nn_lstm_float16(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """cuDNN packs the weights of a float16 LSTM only, so that is the fair baseline on a GPU."""
    return layer(nn_lstm)(shape, device, torch.float16)


def cases(device: torch.device, quick: bool) -> list[Case]:
    truths = {"exact": ours("reference")}
    baseline = f"xlstm_cuda {device.type}"
    if device.type == "cpu":
        cell = (
            Contender(baseline, ours()),
            Contender("reference, step by step", ours("reference"), "exact", baseline),
            Contender("xlstm, vanilla", official, "exact", baseline),
            Contender("flashrnn, vanilla", flashrnn("vanilla"), "exact", baseline),
        )
        layers = (
            Contender("xlstm_cuda.sLSTM", layer(slstm_layer), None),
            Contender("torch.nn.LSTM", layer(nn_lstm), None, "xlstm_cuda.sLSTM"),
        )
        shapes = [{"B": 8, "S": 256, "NH": 4, "DH": 32}]
        if not quick:
            shapes += [{"B": 1, "S": 1024, "NH": 4, "DH": 32}, {"B": 16, "S": 256, "NH": 4, "DH": 128}]
        gate = {"B": 2, "S": 48, "NH": 2, "DH": 32}
        in_place_of_nn_lstm = [{"B": 32, "S": 64, "NH": 4, "DH": 64}, {"B": 1, "S": 1000, "NH": 4, "DH": 16}]
        return [
            Case("slstm", kind, shape, gate, given, truths)
            for kind, given, sizes in (
                ("cell", cell, shapes), ("layer", layers, shapes if quick else shapes + in_place_of_nn_lstm),
            )
            for shape in sizes
        ]  # fmt: skip
    contenders = (
        Contender(baseline, ours()),
        Contender("flashrnn cuda_fused", flashrnn("cuda_fused"), "exact", baseline),
        Contender("flashrnn triton_fused", flashrnn("triton_fused"), "exact", baseline, {"DH": 128}),
        Contender("xlstm cuda", official_cuda, "exact", baseline),
        Contender("torch.nn.LSTM float16", nn_lstm_float16, None, baseline),
    )
    batches = (16,) if quick else (1, 16, 64, 256)
    dims = (64, 256, 768) if quick else (32, 64, 128, 256, 768)
    return [
        Case(
            "slstm", f"B{B} {passes}", {"B": B, "S": 1024, "NH": 768 // DH, "DH": DH},
            {"B": 2, "S": 64, "NH": 1, "DH": DH}, contenders, truths, torch.bfloat16, passes != "forward",
        )
        for B in batches
        for DH in dims
        for passes in ("forward", "forward + backward")
    ]  # fmt: skip
