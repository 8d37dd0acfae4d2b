"""Decoding: time per token and bytes of state against the length of the context, for language models of equal width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from xlstm_cuda import xLSTMLMModel
from xlstm_cuda.cli.settings import VOCAB_SIZE, Settings
from xlstm_cuda.cli.training import build_model

from .. import peers
from ..contenders import Case, Contender, Prepared, Shape
from ..transformer import TransformerLM

GATE_TOKENS = 6


def tokens(B: int, S: int, device: torch.device) -> Tensor:
    return torch.randint(VOCAB_SIZE, (B, S), generator=torch.Generator().manual_seed(0)).to(device)


def bytes_of(state: object) -> int:
    """Of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(bytes_of, state.values()))
    return sum(map(bytes_of, state)) if isinstance(state, (list, tuple)) else 0


def default_model(device: torch.device, dtype: torch.dtype) -> xLSTMLMModel:
    """The model that `python -m xlstm_cuda train` trains, freshly initialised."""
    torch.manual_seed(0)
    return build_model(Settings()).to(device, dtype).eval()


def official_model(context_length: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The official package's model with the configuration and the weights of `default_model`."""
    official = peers.load("xlstm")
    settings = Settings()
    on_cpu = device.type == "cpu"
    recurrence = {"backend": "vanilla", "dtype": "float32", "dtype_b": "float32"} if on_cpu else {"backend": "cuda"}
    config = official.xLSTMLMModelConfig(
        vocab_size=VOCAB_SIZE,
        context_length=context_length,
        num_blocks=settings.num_blocks,
        embedding_dim=settings.embedding_dim,
        slstm_at=list(settings.slstm_at),
        mlstm_block=official.mLSTMBlockConfig(
            mlstm=official.mLSTMLayerConfig(num_heads=settings.num_heads, qkv_proj_blocksize=settings.qkv_proj_blocksize)
        ),
        slstm_block=official.sLSTMBlockConfig(
            slstm=official.sLSTMLayerConfig(num_heads=settings.num_heads, enable_automatic_mixed_precision=False, **recurrence),
            feedforward=official.FeedForwardConfig(),
        ),
    )
    model = official.xLSTMLMModel(config)
    model.load_state_dict(default_model(torch.device("cpu"), torch.float32).state_dict())
    return model.to(device, dtype).eval()


def ours(backend: str | None = None) -> Callable[..., Prepared]:
    """A step after a context of S tokens, which is read as a sequence."""

    @torch.inference_mode()
    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        model = default_model(device, dtype)
        context = tokens(shape["B"], shape["S"] + 1, device)
        _, state = model(context[:, :-1], return_last_state=True, backend=backend)
        last = context[:, -1:].clone()

        def forward() -> Tensor:
            with torch.inference_mode():
                return model.step(last, state, backend=backend)[0]

        def check() -> dict[str, Tensor]:
            return dict(named(model, lambda idx, state: model.step(idx, state, backend=backend), shape["B"], device))

        return Prepared(forward, check=check, state_bytes=bytes_of(state))

    return build


@torch.inference_mode()
def official(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """A step after a context of S tokens, which the official model can only read step by step."""
    model = official_model(shape["S"] + 1, device, dtype)
    context = tokens(shape["B"], shape["S"] + 1, device)
    state = None
    for t in range(min(shape["S"], 8)):  # its state does not grow, so a few tokens of context show the same time
        _, state = model.step(context[:, t : t + 1], state)
    last = context[:, -1:].clone()

    def forward() -> Tensor:
        with torch.inference_mode():
            return model.step(last, state)[0]

    return Prepared(
        forward, check=lambda: dict(named(model, model.step, shape["B"], device)), state_bytes=bytes_of(state)
    )  # fmt: skip


@torch.inference_mode()
def named(model: Any, step: Callable[..., Any], B: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The logits of a few steps from a fresh state."""
    state, idx = None, tokens(B, GATE_TOKENS, device)
    for t in range(GATE_TOKENS):
        logits, state = step(idx[:, t : t + 1], state)
        yield f"logits {t}", logits


@torch.inference_mode()
def transformer(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    torch.manual_seed(0)
    settings = Settings()
    model = TransformerLM(VOCAB_SIZE, settings.embedding_dim, settings.num_heads, settings.num_blocks).to(device, dtype).eval()
    caches = model.cache(shape["B"], shape["S"])
    last = tokens(shape["B"], 1, device)

    def forward() -> Tensor:
        with torch.inference_mode():
            return model.step(last, caches, shape["S"])

    return Prepared(forward, state_bytes=bytes_of(caches))


def cases(device: torch.device, quick: bool) -> list[Case]:
    contenders = (
        Contender("xlstm_cuda", ours()),
        Contender("xlstm", official, against="xlstm_cuda"),
        Contender("Transformer with KV cache", transformer, None, against="xlstm_cuda"),
    )
    lengths = (128, 1024, 8192, 32768) if quick else (128, 512, 2048, 8192, 32768)
    batches = (1,) if quick else (1, 16)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    truths = {"exact": ours("reference")}
    return [
        Case(
            "decode", "decode" if B == 1 else "batched decode", {"B": B, "S": S}, {"B": B, "S": 8}, contenders, truths, dtype,
            backward=False, x_axis="context",
        )
        for B in batches
        for S in lengths
    ]  # fmt: skip
