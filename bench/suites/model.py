"""Language models of equal width and depth: loss and gradients of one batch, the core of a training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from xlstm_cuda.cli.settings import VOCAB_SIZE, Settings

from ..contenders import Build, Case, Contender, Prepared, Shape
from ..transformer import TransformerLM
from .decode import default_model, official_model, tokens


def on_batch(module: nn.Module, shape: Shape, device: torch.device, **options: object) -> Prepared:
    """Cross entropy of the next byte, gradients for every parameter."""
    batch = tokens(shape["B"], shape["S"] + 1, device)
    module.train()

    def forward() -> Tensor:
        logits = module(batch[:, :-1], **options)
        return cross_entropy(logits.float().flatten(0, 1) if logits.dtype != torch.float64 else logits.flatten(0, 1),
                             batch[:, 1:].flatten())  # fmt: skip

    return Prepared(forward, dict(module.named_parameters()))


def build(make: Callable[[Shape, torch.device, torch.dtype], nn.Module], **options: object) -> Build:
    return lambda shape, device, dtype: on_batch(make(shape, device, dtype), shape, device, **options)


def ours(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return default_model(device, dtype)


def official(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return official_model(shape["S"], device, dtype)


def transformer(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    settings = Settings()
    model = TransformerLM(VOCAB_SIZE, settings.embedding_dim, settings.num_heads, settings.num_blocks)
    return model.to(device, dtype)


def cases(device: torch.device, quick: bool) -> list[Case]:
    contenders = (
        Contender("xlstm_cuda", build(ours)),
        Contender("xlstm", build(official), "exact", "xlstm_cuda", {"S": 256} if device.type == "cpu" else {}),
        Contender("Transformer", build(transformer), None, "xlstm_cuda"),
    )
    settings = Settings()
    sizes = [(settings.batch_size, settings.context_length)]
    if not quick:
        sizes += [(4, 256), (1, 2048)]
    if device.type == "cuda":
        sizes = [(64, 1024)] if quick else [(256, 256), (64, 1024), (16, 4096)]
    truths = {"exact": build(ours, backend="reference")}
    dtype, slack = (torch.float32, 1.0) if device.type == "cpu" else (torch.bfloat16, 2.0)
    return [
        Case("model", "training", {"B": B, "S": S}, {"B": 2, "S": 32}, contenders, truths, dtype, slack=slack) for B, S in sizes
    ]  # fmt: skip
