"""Residual blocks of equal width against sequence length: the O(S) claim, and the sLSTM against the mLSTM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import xlstm_cuda

from .. import peers
from ..contenders import Case, Contender, Prepared, Shape
from ..draw import Normal
from ..transformer import TransformerBlock

NH = 4


def mlstm_block(D: int) -> nn.Module:
    """Ours, and by the same names the official one's weights."""
    config = xlstm_cuda.mLSTMBlockConfig(mlstm=xlstm_cuda.mLSTMLayerConfig(embedding_dim=D, num_heads=NH))
    return xlstm_cuda.mLSTMBlock(config)


def slstm_block(D: int) -> nn.Module:
    config = xlstm_cuda.sLSTMBlockConfig(slstm=xlstm_cuda.sLSTMLayerConfig(embedding_dim=D, num_heads=NH))
    return xlstm_cuda.sLSTMBlock(config)


def official_mlstm_block(D: int, S: int) -> nn.Module:
    official = peers.load("xlstm")
    layer = official.mLSTMLayerConfig(embedding_dim=D, num_heads=NH, context_length=S)
    return peers.load("xlstm.blocks.mlstm.block").mLSTMBlock(official.mLSTMBlockConfig(layer, _num_blocks=1, _block_idx=0))


def official_slstm_block(D: int, device: torch.device) -> nn.Module:
    """The CUDA kernels on a GPU (compiled on first use), the vanilla recurrence on a CPU."""
    official = peers.load("xlstm")
    names = {"backend": "cuda"} if device.type == "cuda" else {"backend": "vanilla", "dtype": "float32", "dtype_b": "float32"}
    layer = official.sLSTMLayerConfig(embedding_dim=D, num_heads=NH, enable_automatic_mixed_precision=False, **names)
    config = official.sLSTMBlockConfig(layer, official.FeedForwardConfig(embedding_dim=D), _num_blocks=1, _block_idx=0)
    return peers.load("xlstm.blocks.slstm.block").sLSTMBlock(config)


def prepared(module: nn.Module, shape: Shape, device: torch.device, dtype: torch.dtype, **options: object) -> Prepared:
    """The module on x (B, S, D), gradients for x and every parameter."""
    x = Normal(device)(shape["B"], shape["S"], shape["D"]).to(dtype).requires_grad_()
    module = module.to(device, dtype)
    return Prepared(lambda: module(x, **options), {"x": x, **dict(module.named_parameters())})


def ours(make: Callable[[int], nn.Module], backend: str | None = None) -> Callable[..., Prepared]:
    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        torch.manual_seed(0)
        return prepared(make(shape["D"]), shape, device, dtype, backend=backend)

    return build


def official(make_ours: Callable[[int], nn.Module], make: Callable[[Shape, torch.device], nn.Module]) -> Callable[..., Prepared]:
    """The official block with the weights of ours."""

    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        torch.manual_seed(0)
        weights = make_ours(shape["D"]).state_dict()
        module = make(shape, device)
        module.load_state_dict(weights)
        return prepared(module, shape, device, dtype)

    return build


def transformer(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    torch.manual_seed(0)
    return prepared(TransformerBlock(shape["D"], NH), shape, device, dtype)


def cases(device: torch.device, quick: bool) -> list[Case]:
    on_cpu = device.type == "cpu"
    truths = {"mlstm": ours(mlstm_block, "reference"), "slstm": ours(slstm_block, "reference")}
    official_mlstm = official(mlstm_block, lambda shape, _: official_mlstm_block(shape["D"], shape["S"]))
    official_slstm = official(slstm_block, lambda shape, device: official_slstm_block(shape["D"], device))
    contenders = (
        Contender("mLSTM block", ours(mlstm_block), "mlstm"),
        Contender("sLSTM block", ours(slstm_block), "slstm", against="mLSTM block"),
        Contender("Transformer block", transformer, None, against="mLSTM block"),
        Contender("xlstm mLSTM block", official_mlstm, "mlstm", "mLSTM block", {"S": 2048} if on_cpu else {}),
        Contender("xlstm sLSTM block", official_slstm, "slstm", "sLSTM block", {"S": 256} if on_cpu else {}),
    )
    lengths: tuple[int, ...] = (256, 1024, 4096) if quick else (256, 512, 1024, 2048, 4096, 8192)
    if not on_cpu:
        lengths = (512, 2048, 8192, 32768) if quick else (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    shapes = [{"B": 1, "S": S, "D": 128} if on_cpu else {"B": 65536 // S, "S": S, "D": 1024} for S in lengths]
    dtype = torch.float32 if on_cpu else torch.bfloat16
    gate = {"B": 2, "S": 70, "D": 64 if on_cpu else 256}
    return [Case("block", "blocks", shape, gate, contenders, truths, dtype, measures_memory=True) for shape in shapes]
