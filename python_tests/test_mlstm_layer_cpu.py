"""The native passes around the recurrence of an mLSTM layer: equal to the modules, gradients, NaN, threads, what they refuse."""

from __future__ import annotations

import pytest
import torch
from isa_fixture import isa_fixture
from randomised import randomised
from torch import nn

from xlstm_cuda import mLSTMLayer, mLSTMLayerConfig
from xlstm_cuda.ops import mlstm_layer_cpu

#: B, S, D, NH, qkv_proj_blocksize, bias, conv1d_kernel_size: steps beside tiles and vectors, blocks from one feature to a tile.
SHAPES = [(2, 70, 32, 2, 4, False, 4), (1, 1, 32, 4, 16, True, 4), (3, 2, 64, 2, 1, True, 8), (1, 300, 32, 2, 64, False, 1)]
isa = isa_fixture()


@pytest.fixture
def by_modules(monkeypatch):
    """Makes layers call their modules, until it is undone."""

    def switch(on):
        monkeypatch.setattr(mlstm_layer_cpu, "usable", (lambda *_: False) if on else usable)

    usable = mlstm_layer_cpu.usable
    return switch


@pytest.fixture
def native_calls(monkeypatch):
    """Counts the calls of the native node."""
    calls, run = [], mlstm_layer_cpu.mlstm_layer
    monkeypatch.setattr(mlstm_layer_cpu, "mlstm_layer", lambda *args: calls.append(1) or run(*args))
    return calls


def layer_of(D, NH, block, bias, K, dtype=torch.float64):
    config = mLSTMLayerConfig(embedding_dim=D, num_heads=NH, qkv_proj_blocksize=block, bias=bias, conv1d_kernel_size=K)
    return randomised(mLSTMLayer(config).to(dtype), by=0.2)


def state_of(layer, B, dtype=torch.float64):
    I, NH, K = layer.config._inner_embedding_dim, layer.config.num_heads, layer.config.conv1d_kernel_size
    sizes = (B, NH, I // NH, I // NH), (B, NH, I // NH, 1), (B, NH, 1, 1)
    C, n, m = (torch.randn(size, dtype=dtype) for size in sizes)
    return {
        "mlstm_state": (C.requires_grad_(), n.requires_grad_(), m),
        "conv_state": (torch.randn(B, K, I, dtype=dtype).requires_grad_(),),
    }


def outcome(layer, x, **options):
    """Outputs, the state, and gradients of a loss on both, with respect to everything."""
    state = options.get("state")
    leaves = [x, *layer.parameters()] + ([] if state is None else [*state["mlstm_state"][:2], *state["conv_state"]])
    y, last = layer(x, return_last_state=True, **options)
    C, n, m = last["mlstm_state"]
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + C.square().sum() + n.sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [y, C, n, m, *last["conv_state"], *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("kind", ["fresh", "state", "packed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_native_passes_equal_the_modules(shape, kind, isa, by_modules, native_calls):
    B, S, D, *rest = shape
    layer = layer_of(D, *rest)
    x = torch.randn(1 if kind == "packed" else B, S, D, dtype=torch.float64, requires_grad=True)
    options = {"state": state_of(layer, B)} if kind == "state" else {}
    if kind == "packed":
        options["cu_seqlens"] = torch.tensor([0, S // 3, S // 3, S // 2, S], dtype=torch.int32)
    got = outcome(layer, x, **options)
    assert native_calls
    by_modules(True)
    expected = outcome(layer, x, **options)
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        torch.testing.assert_close(
            one, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max() if other.numel() else 0) + 1e-12
        )


def test_the_native_passes_have_the_gradients_of_their_outputs(native_calls):
    layer = layer_of(16, 2, 4, True, 3)  # rounded up to 64 inner features
    x, state = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True), state_of(layer, 2)
    names = [name for name, _ in layer.named_parameters() if not name.startswith("proj")]
    weights = [layer.get_parameter(name) for name in names]

    def function(x, C, n, inputs, *weights):
        given = {"mlstm_state": (C, n, state["mlstm_state"][2]), "conv_state": (inputs,)}
        y, last = torch.func.functional_call(layer, dict(zip(names, weights)), (x, given, True))
        m = last["mlstm_state"][2].detach()  # the state at a fixed gauge
        return y, last["mlstm_state"][0] * m.exp(), last["mlstm_state"][1] * m.exp()

    C, n, _ = state["mlstm_state"]
    assert torch.autograd.gradcheck(lambda *args: function(*args)[0], (x, C, n, *state["conv_state"], *weights), fast_mode=True)
    assert native_calls


def test_float32_is_as_exact_as_the_modules(by_modules):
    layer = layer_of(64, 4, 16, False, 4)
    x = torch.randn(2, 200, 64, dtype=torch.float64)
    by_modules(True)
    with torch.no_grad():
        true = layer(x)
        layer, x = layer.float(), x.float()
        modules = layer(x)
        by_modules(False)
        native = layer(x)
    assert (native - true).norm() <= 2 * (modules - true).norm()


@pytest.mark.parametrize("S", [100, 700])
def test_bits_do_not_depend_on_threads_nor_rows_on_their_batch(S):
    layer = layer_of(64, 2, 8, False, 4, torch.float32)
    x = torch.randn(3, S, 64, requires_grad=True)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(outcome(layer, x))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))
    up = torch.randn(3, S, 256, requires_grad=True)
    dy = torch.randn(3, S, 128)

    def middle(up, dy):
        y, _ = mlstm_layer_cpu.mlstm_layer(up, layer._plain_weights(), None, None, None, 1e-5, False)
        return y, *torch.autograd.grad(y, up, dy)

    for alone, together in zip(middle(up[1:2], dy[1:2]), middle(up, dy)):
        assert torch.equal(alone, together[1:2])


def test_a_nan_stays_in_its_row_and_behind_its_step(native_calls):
    layer = layer_of(32, 2, 4, False, 4, torch.float32)
    x = torch.randn(2, 90, 32)
    with torch.no_grad():
        clean = layer(x)
        x[1, 40, 3] = torch.nan
        y = layer(x)
    assert native_calls
    assert torch.equal(y[0], clean[0]) and torch.equal(y[1, :40], clean[1, :40])
    assert y[1, 40:].isnan().all()


def test_a_step_of_another_packed_sequence_is_not_seen():
    layer = layer_of(32, 2, 4, False, 4, torch.float32)
    x = torch.randn(1, 20, 32)
    borders = torch.tensor([0, 7, 20], dtype=torch.int32)
    with torch.no_grad():
        clean = layer(x, cu_seqlens=borders)
        x[0, 6] = torch.nan
        y = layer(x, cu_seqlens=borders)
    torch.testing.assert_close(y[0, 7:], clean[0, 7:])


PARTS = [
    "conv1d",
    "conv1d.conv",
    "q_proj",
    "k_proj",
    "v_proj",
    "mlstm_cell",
    "mlstm_cell.igate",
    "mlstm_cell.fgate",
    "mlstm_cell.outnorm",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_asks_for_modules(part, native_calls):
    layer, seen = layer_of(32, 2, 4, False, 4, torch.float32), []
    layer.get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 5, 32))
    assert seen and not native_calls


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "learnable_skip", nn.Tanh()),
        lambda layer: nn.utils.parametrize.register_parametrization(layer.q_proj, "weight", nn.Tanh()),
        lambda layer: layer.q_proj.half(),
        lambda layer: setattr(layer.mlstm_cell, "forward", lambda q, k, v, *_: (q, None)),
    ],
    ids=["skip", "weight", "dtype", "forward"],
)
def test_what_is_not_plain_asks_for_modules(change, native_calls):
    layer = layer_of(32, 2, 4, False, 4, torch.float32)
    change(layer)
    with torch.no_grad():
        try:
            layer(torch.randn(2, 5, 32))
        except RuntimeError as error:  # PyTorch's own, about two dtypes in one product
            assert "dtype" in str(error) or "Half" in str(error)
    assert not native_calls


@pytest.mark.parametrize("part", ["mlstm_cell.igate", "q_proj", "conv1d.conv", "mlstm_cell.outnorm"])
def test_weights_of_another_shape_are_not_read(part, native_calls):
    layer = layer_of(32, 2, 4, False, 4, torch.float32)
    module = layer.get_submodule(part)
    module.weight = nn.Parameter(module.weight[..., :-1].detach().clone())
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        layer(torch.randn(2, 5, 32))
    assert not native_calls


def test_double_backward_and_forward_mode_raise():
    layer = layer_of(32, 2, 4, False, 4)
    x = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


def test_a_layer_keeps_little_for_backward():
    """(a, g), h and the input of the last projection, and no q, k, v or activation."""
    layer, kept = layer_of(32, 2, 4, False, 4, torch.float32), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x = torch.randn(1, 512, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = layer(x)
    weights = sum(p.numel() * p.element_size() for p in layer.parameters())
    of_one_feature = 512 * 4
    assert sum(kept.values()) <= weights + of_one_feature * (32 + 2 * 64 + 64 + 64 + 2) + 4096
    y.sum().backward()


def test_nothing_has_zero_gradients():
    layer = layer_of(32, 2, 4, False, 4)
    for B, S in ((0, 4), (2, 0)):
        x = torch.zeros(B, S, 32, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        assert y.shape == (B, S, 32)
        assert all(g is None or not g.any() for g in torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True))
