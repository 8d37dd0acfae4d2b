"""The step of a whole block as one native call: equal to the modules, states in place, who asks for modules."""

from __future__ import annotations

import pytest
import torch
from isa_fixture import isa_fixture
from randomised import randomised
from torch import nn

from xlstm_cuda import (
    FeedForwardConfig,
    mLSTMBlock,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlock,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
)
from xlstm_cuda.ops import block_step_cpu


def mlstm(D=32, **fields):
    return mLSTMBlock(
        mLSTMBlockConfig(
            mLSTMLayerConfig(embedding_dim=D, num_heads=2) if not fields else mLSTMLayerConfig(embedding_dim=D, **fields)
        )
    )


def slstm(D=24, feedforward=FeedForwardConfig, **fields):
    return sLSTMBlock(
        sLSTMBlockConfig(sLSTMLayerConfig(embedding_dim=D, **{"num_heads": 2, **fields}), feedforward and feedforward())
    )


BLOCKS = {
    "mLSTM": mlstm,
    "mLSTM narrow biased": lambda: mlstm(num_heads=4, qkv_proj_blocksize=2, bias=True, conv1d_kernel_size=2),
    "mLSTM wide": lambda: mlstm(D=20, num_heads=1, qkv_proj_blocksize=32),
    "sLSTM": slstm,
    "sLSTM without convolution": lambda: slstm(conv1d_kernel_size=0),
    "sLSTM without feed-forward": lambda: slstm(D=20, feedforward=None, num_heads=1),
}
isa = isa_fixture()


@pytest.fixture
def native_calls(monkeypatch):
    calls = []
    for name in ("mlstm", "slstm"):
        run = getattr(block_step_cpu, name)

        def counted(*args, run=run):
            done = run(*args)
            calls.append(done is not None)
            return done

        monkeypatch.setattr(block_step_cpu, name, counted)
    return calls


def block_of(kind, dtype=torch.float64):
    return randomised(BLOCKS[kind]().to(dtype).eval(), by=0.2)


def steps(block, x, state=None, **options):
    """All outputs and the state after each step, as a list of tensors."""
    found = []
    with torch.no_grad():
        for t in range(x.shape[1]):
            y, state = block.step(x[:, t : t + 1], state, **options)
            found.append([y.clone(), *(part.clone() for part in tensors(state))])
    return found


def tensors(state):
    for part in state.values():
        yield from (part,) if isinstance(part, torch.Tensor) else part or ()


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_native_step_equals_the_modules(kind, B, isa, native_calls, monkeypatch):
    block = block_of(kind)
    x = torch.randn(B, 6, block.xlstm_norm.dim, dtype=torch.float64)
    got = steps(block, x)
    assert native_calls == [True] * 6
    monkeypatch.setattr(block_step_cpu, "usable", lambda x: False)
    for ours, theirs in zip(got, steps(block, x)):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", BLOCKS)
def test_in_place_gives_the_same_bits_and_only_then_touches_the_state(kind, native_calls):
    block = block_of(kind, torch.float32)
    x = torch.randn(2, 6, block.xlstm_norm.dim)
    expected = steps(block, x)
    assert all(torch.equal(a, b) for one, other in zip(steps(block, x, in_place=True), expected) for a, b in zip(one, other))
    with torch.no_grad():
        _, state = block.step(x[:, :1])
        before = [part.clone() for part in tensors(state)]
        block.step(x[:, 1:2], state)
        assert all(torch.equal(a, b) for a, b in zip(tensors(state), before))
        _, after = block.step(x[:, 1:2], state, in_place=True)
    assert [a.data_ptr() for a in tensors(after)] == [b.data_ptr() for b in tensors(state)]
    assert all(native_calls)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_row_does_not_depend_on_its_batch_nor_on_threads(kind):
    block = block_of(kind, torch.float32)
    x = torch.randn(5, 3, block.xlstm_norm.dim)
    alone = steps(block, x[2:3])[-1][0]
    torch.set_num_threads(3)
    together = steps(block, x)[-1][0]
    torch.set_num_threads(1)
    assert torch.equal(together[2:3], alone)


def test_many_weights_on_threads_give_the_same_bits_and_equal_the_modules(native_calls, monkeypatch):
    """Outputs in parts of 64, the last one shorter, each with its own biases."""
    block = mlstm(D=520, num_heads=4, qkv_proj_blocksize=16, bias=True).eval()
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    x, found = torch.randn(2, 2, 520), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(steps(block, x)[-1])
    torch.set_num_threads(1)
    assert native_calls == [True] * 4 and all(torch.equal(a, b) for a, b in zip(*found))
    block, x = block.double(), x.double()
    native = steps(block, x)[-1]
    monkeypatch.setattr(block_step_cpu, "usable", lambda x: False)
    for one, other in zip(native, steps(block, x)[-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mLSTM", "sLSTM"])
def test_a_state_of_a_sequence_is_taken(kind, native_calls):
    block = block_of(kind)
    x = torch.randn(2, 9, block.xlstm_norm.dim, dtype=torch.float64)
    with torch.no_grad():
        whole = block(x)
        _, state = block(x[:, :5], None, True)
        got = torch.cat([one[0] for one in steps(block, x[:, 5:], state)], 1)
    assert native_calls == [True] * 4
    torch.testing.assert_close(got, whole[:, 5:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mLSTM", "sLSTM"])
def test_every_hook_and_change_asks_for_modules(kind, native_calls):
    block = block_of(kind, torch.float32)
    x = torch.randn(1, 1, block.xlstm_norm.dim)
    called = ("xlstm_norm", "ffn_norm", "ffn", "proj", "gate", "conv", "norm")
    for name, module in block.named_modules():
        if not any(part in name for part in called) or isinstance(module, nn.Dropout):  # dropout is not called in eval mode
            continue
        handle = module.register_forward_pre_hook(lambda *_: None)
        steps(block, x)
        handle.remove()
        assert not native_calls, name
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    steps(block, x)
    handle.remove()
    assert not native_calls
    steps(block, x)
    assert native_calls == [True]


@pytest.mark.parametrize("kind", ["mLSTM", "sLSTM"])
def test_gradients_training_dtypes_and_many_rows_ask_for_modules(kind, native_calls):
    block = block_of(kind, torch.float32)
    x = torch.randn(1, 1, block.xlstm_norm.dim)
    block.step(x)[0].sum().backward()
    assert all(weight.grad is not None for weight in block.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        block.step(x)
    with torch.no_grad():
        block.step(x.expand(block_step_cpu.MOST_ROWS + 1, -1, -1))
        block.xlstm.dropout.p = 0.5
        block.train().step(x)
        block.eval().to(torch.bfloat16).step(x.bfloat16())
    assert not any(native_calls)


@pytest.mark.parametrize("kind", ["mLSTM", "sLSTM"])
def test_a_state_or_weight_that_does_not_fit_is_named_by_the_modules(kind, native_calls):
    block = block_of(kind, torch.float32)
    x = torch.randn(1, 1, block.xlstm_norm.dim)
    with torch.no_grad():
        _, state = block.step(torch.randn(2, 1, block.xlstm_norm.dim))
        with pytest.raises(ValueError, match=r"conv_state: got shape|_state"):
            block.step(x, state)
        with pytest.raises(ValueError, match="state: got keys"):
            block.step(x, {"other": None})
        weight = next(w for name, w in block.named_parameters() if name.endswith("igate.weight"))
        weight.data = weight.data[:1]
        with pytest.raises(RuntimeError):
            block.step(x)
