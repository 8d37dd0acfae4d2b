"""docs/scale.md is what its script writes, and the script's arithmetic is that of the package: sizes, operations, saved bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("bench", reason="bench/ is only in a checkout")

from bench import scale
from xlstm_cuda import functional, xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.models.large import LargeBlock, Run

XLSTM = [scale.XLSTM_1B, scale.XLSTM_7B]


def config(model: scale.Model) -> xLSTMLargeConfig:
    return xLSTMLargeConfig(embedding_dim=model.D, num_heads=model.heads, num_blocks=model.layers, vocab_size=model.V)


def test_the_page_is_what_the_script_writes():
    assert scale.PAGE.read_text(encoding="utf-8") == scale.render(), "python -m bench.scale writes it anew"


@pytest.mark.parametrize("model", XLSTM, ids=lambda model: model.name)
def test_sizes_are_those_of_the_model(model):
    with torch.device("meta"):
        built = xLSTMLarge(config(model))
    assert model.parameters == sum(p.numel() for p in built.parameters())
    linear = [module for module in built.modules() if isinstance(module, torch.nn.Linear)]
    assert model.matmul_weights == sum(module.weight.numel() for module in linear)
    assert (model.F, model.qk, model.v) == (
        built.config.ffn_dim,
        built.config.qk_dim // model.heads,
        built.config.v_dim // model.heads,
    )


def test_the_transformers_are_as_large():
    for ours, other in scale.PAIRS:
        assert other.parameters == pytest.approx(ours.parameters, rel=1e-3)
    assert scale.LLAMA_8B.parameters == 8_030_261_248  # the published number


@pytest.mark.parametrize("model", XLSTM, ids=lambda model: model.name)
def test_operations_of_the_mlstm_are_those_of_the_counter(model):
    B, S, NH = 1, 128, 2
    q, k = (torch.randn(B, S, NH, model.qk, requires_grad=True) for _ in range(2))
    v, gates = torch.randn(B, S, NH, model.v, requires_grad=True), torch.zeros(B, S, NH)
    with FlopCounterMode(display=False) as counter:
        h = functional.mlstm(q, k, v, gates, gates)
        forward = counter.get_total_flops()
        h.sum().backward()
    backward = counter.get_total_flops() - forward
    one_head = replace(model, D=model.D // model.heads * NH, heads=NH, layers=1)
    assert (forward / S, backward / S) == one_head.mixing(S)


@pytest.mark.parametrize("model", XLSTM, ids=lambda model: model.name)
def test_saved_bytes_are_what_autograd_keeps_of_a_block(model):
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage()._cdata] = x  # held, so that no other storage gets its address
        return x

    def saved(S: int) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            block(torch.empty(1, S, model.D, requires_grad=True, dtype=torch.bfloat16), None, Run("cpu"))
        weights = {p.untyped_storage()._cdata for p in block.parameters()}
        return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)

    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        try:
            block = LargeBlock(config(model))
        finally:
            torch.set_default_dtype(torch.float32)
        measured = (saved(2048) - saved(1024)) / 1024
    assert measured == pytest.approx(model.saved, rel=0.02)


def test_the_assumption_gives_the_published_figure():
    _, run, found = scale.published()[0]
    assert run.tokens_a_second == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("S", [scale.TOKENS, scale.LONG])
@pytest.mark.parametrize("model", [model for pair in scale.PAIRS for model in pair], ids=lambda model: model.name)
def test_plans_hang_together(model, S):
    plans = scale.plans(model, S)
    for plan in plans:
        assert plan.memory <= plan.machine.usable * plan.machine.memory
        assert plan.gpus % plan.cp == 0 and plan.tokens * plan.cp == S
        assert plan.compute < plan.step <= plan.compute + plan.weights_time + plan.context_time
        assert 0.1 < plan.mfu < plan.machine.matmul
        faster = replace(plan, machine=replace(plan.machine, cell=2 * plan.machine.cell, attention=2 * plan.machine.attention))
        assert faster.step < plan.step and faster.memory == plan.memory
    received = [plan.network for plan in plans]
    assert received == sorted(received) and received[-1] < 8 * model.parameters
    assert all(plan.context == 0 for plan in plans) == (S == scale.TOKENS)


def test_what_moves_along_a_sequence():
    """mLSTM: the states of the other ranks, whatever S is; attention: the keys and values of all S."""
    plan = scale.Plan(scale.XLSTM_7B, gpus=16, S=scale.LONG, cp=16)
    assert plan.context == 2 * 15 * 32 * 8 * (256 * 512 + 256 + 3) * 4
    assert replace(plan, S=2 * scale.LONG).context == plan.context
    other = replace(plan, model=scale.LLAMA_7B)
    assert other.context == pytest.approx(3 * 32 * 2 * 2 * 4096 * scale.LONG * 15 / 16)
