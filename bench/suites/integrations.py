"""Models of other packages before and after `xlstm_cuda.integrations`: the same objects, the same weights, one switch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xlstm_cuda import functional, integrations
from xlstm_cuda.integrations.patch import Swap

from .. import peers
from ..contenders import Build, Case, Contender, Prepared, Shape
from ..draw import Normal
from . import model
from .decode import official_model, tokens

VOCAB_SIZE = 256


def served(build: Build, integration: Any, backend: str | None = None) -> Build:
    """The same contender with the swaps of an integration in force whenever it runs.

    They are written and taken back around every call: `enable` would do more each time, such as forgetting compiled programs.
    """

    def build_served(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        prepared = build(shape, device, dtype)
        swaps = [(swap, swap.read(), swap.replace(swap.original())) for swap in integration.swaps(backend)]
        before = prepared.forward

        def forward() -> Tensor:
            with in_force(swaps):
                return before()

        prepared.forward = forward
        return prepared

    return build_served


@contextmanager
def in_force(swaps: Sequence[tuple[Swap, Any, Any]]) -> Iterator[None]:
    """Writes the replacements of (swap, original, replacement), and the originals at the end."""
    try:
        for swap, _, replacement in swaps:
            swap.write(replacement)
        yield
    finally:
        for swap, original, _ in swaps:
            swap.write(original)


def mlstm_operands(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """q, k, v, i, f in the layout of mlstm_kernels, (B, NH, S, ...)."""
    draw, lead = Normal(device), (shape["B"], shape["NH"], shape["S"])
    drawn = {name: draw(*lead, shape["DH"]) for name in "qkv"} | {"i": draw(*lead), "f": draw(*lead) + 3}
    return {name: value.to(dtype).requires_grad_() for name, value in drawn.items()}


def mlstm_backend(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """`mLSTMBackend` in training, as every model on mlstm_kernels calls it."""
    package = peers.load("mlstm_kernels.torch.backend_module")
    kernel = "chunkwise--native_autograd" if device.type == "cpu" else "chunkwise--triton_xl_chunk"
    names = {"autocast_kernel_dtype": str(dtype).removeprefix("torch."), "return_last_states": False}
    module = package.mLSTMBackend(package.mLSTMBackendConfig(chunkwise_kernel=kernel, **names))
    leaves = mlstm_operands(shape, device, dtype)
    return Prepared(lambda: module(**leaves), leaves)


def mlstm_truth(normalizer_grad: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    leaves = mlstm_operands(shape, device, dtype)

    def forward() -> Tensor:
        by_step = [x.transpose(1, 2) for x in leaves.values()]
        h, _ = functional.mlstm(*by_step, return_state=True, normalizer_grad=normalizer_grad, backend="reference")
        return h.transpose(1, 2)

    return Prepared(forward, leaves)


def slstm_operands(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Wx "BTGHD", R "GHDP", b "GHD" of flashrnn."""
    draw, NH, DH = Normal(device), shape["NH"], shape["DH"]
    drawn = {"x": draw(shape["B"], shape["S"], 4, NH, DH), "R": draw(4, NH, DH, DH) / DH**0.5, "b": draw(4, NH, DH)}
    return {name: value.to(dtype).requires_grad_() for name, value in drawn.items()}


def flashrnn(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    package, leaves = peers.load("flashrnn"), slstm_operands(shape, device, dtype)
    options = {"backend": "vanilla" if device.type == "cpu" else "cuda", "dtype": str(dtype).removeprefix("torch.")}
    return Prepared(lambda: package.flashrnn(*leaves.values(), function="slstm", **options)[0][0], leaves)


def slstm_truth(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    leaves = slstm_operands(shape, device, dtype)

    def forward() -> Tensor:
        h, _ = functional.slstm(*leaves.values(), return_state=True, backend="reference")
        return h

    return Prepared(forward, leaves)


def xlstm(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """A training step of the official language model."""
    return model.on_batch(official_model(shape["S"], device, dtype), shape, device)


def transformers(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Logits of xLSTMForCausalLM, a prompt."""
    peers.load("transformers")
    package = peers.load("transformers.models.xlstm.modeling_xlstm")
    config = package.xLSTMConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape["D"],
        num_hidden_layers=2,
        num_heads=4,
        autocast_kernel_dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
    )
    torch.manual_seed(0)
    module = package.xLSTMForCausalLM(config).to(device, dtype).eval()
    batch = tokens(shape["B"], shape["S"], device)
    return Prepared(lambda: module(batch, use_cache=False).logits)


def tirex(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """The sLSTM cell of tirex-ts."""
    package = peers.load("tirex.models.slstm.cell")
    D = shape["NH"] * shape["DH"]
    cell = package.sLSTMCell(package.sLSTMBlockConfig(D, shape["NH"]), "torch" if device.type == "cpu" else "cuda").to(
        device, dtype
    )
    draw = Normal(device)
    with torch.no_grad():
        cell._recurrent_kernel_.copy_(draw(*cell._recurrent_kernel_.shape) / shape["DH"] ** 0.5)
        cell._bias_.copy_(draw(*cell._bias_.shape))
    x = draw(shape["B"], shape["S"], 4 * D).to(dtype)
    return Prepared(lambda: cell(x, None)[0])


def cases(device: torch.device, quick: bool) -> list[Case]:
    on_cpu = device.type == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16

    def case(
        name: str, build: Build, shape: Shape, truths: dict[str, Build], theirs: str | None = "exact", backward: bool = True
    ) -> Case:
        integration = getattr(integrations, name)
        after = Contender(f"xlstm_cuda in {name}", served(build, integration))
        before = Contender(name, build, theirs, against=after.name)
        gate = {**shape, "B": 2, "S": 64}
        slack = 1.0 if on_cpu else 2.0
        return Case("integrations", name, shape, gate, (after, before), truths, dtype, backward, slack=slack)

    scale = 1 if on_cpu else 8
    S = 256 if quick else 1024
    mlstm_truths: dict[str, Build] = {name: functools.partial(mlstm_truth, name) for name in ("exact", "detached")}
    mlstm_shape = {"B": scale, "S": S, "NH": 4, "DH": 64}
    xlstm_shape = {"B": 4 * scale, "S": 64 if quick else 256}
    flashrnn_shape = {"B": 8 * scale, "S": 128 if quick else 512, "NH": 4, "DH": 32}
    transformers_truth = served(transformers, integrations.transformers, "reference")
    tirex_shape = {"B": 8 * scale, "S": 64, "NH": 4, "DH": 128}
    tirex_truth = served(tirex, integrations.tirex, "reference")
    return [
        case("mlstm_kernels", mlstm_backend, mlstm_shape, mlstm_truths, "exact" if on_cpu else "detached"),
        case("xlstm", xlstm, xlstm_shape, {"exact": model.build(model.ours, backend="reference")}),
        case("flashrnn", flashrnn, flashrnn_shape, {"exact": slstm_truth}),
        case("transformers", transformers, {"B": scale, "S": S, "D": 256}, {"exact": transformers_truth}, backward=False),
        # On a CPU tirex-ts rounds to bfloat16 whatever the dtype: what it computes there is compared with nothing.
        case("tirex", tirex, tirex_shape, {"exact": tirex_truth}, None if on_cpu else "exact", backward=False),
    ]
