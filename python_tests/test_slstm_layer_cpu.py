"""The sLSTM layer as one node on a CPU: equal to projection and recurrence apart, gradients, bits, NaN, what it leaves out."""

from __future__ import annotations

import pytest
import torch
from isa_fixture import isa_fixture

from xlstm_cuda import sLSTM
from xlstm_cuda.native import _C
from xlstm_cuda.ops import slstm_layer_cpu

#: B, S, features, NH, DH: whole vectors and less than a tile, rows beyond a tile of eight, slices of many steps, of one step (17
#: rows of 2048 units), and a last one of a single token.
SHAPES = [(3, 40, 16, 2, 16), (9, 70, 48, 3, 32), (1, 1025, 80, 4, 16), (17, 3, 32, 4, 512), (2, 16, 32, 1, 48)]
isa = isa_fixture()


@pytest.fixture(autouse=True)
def with_any_instruction_set(monkeypatch):
    monkeypatch.setattr(slstm_layer_cpu, "LEFT_TO_LIBRARIES", ())


@pytest.fixture
def apart(monkeypatch):
    """Makes layers call projection and recurrence, until it is undone."""
    usable = slstm_layer_cpu.usable
    return lambda on: monkeypatch.setattr(slstm_layer_cpu, "usable", (lambda _: False) if on else usable)


@pytest.fixture
def native_calls(monkeypatch):
    """Counts the calls of the node."""
    calls, run = [], slstm_layer_cpu.slstm_layer
    monkeypatch.setattr(slstm_layer_cpu, "slstm_layer", lambda *args: calls.append(1) or run(*args))
    return calls


def case(shape, *, dtype=torch.float64, bias=True, forget_gate="sigmoid"):
    """A layer, its input and a state that has lived."""
    B, S, F, NH, DH = shape
    torch.manual_seed(0)
    layer = sLSTM(F, NH * DH, batch_first=True, bias=bias, num_heads=NH, forget_gate=forget_gate, dtype=dtype)
    x = torch.randn(B, S, F, dtype=dtype, requires_grad=True)
    h, c, m = torch.randn(3, 1, B, NH, DH, dtype=dtype)
    n = torch.rand(1, B, NH, DH, dtype=dtype) + 0.5
    return layer, x, tuple(part.requires_grad_() for part in (h, c * n, n, m))


def outcome(layer, x, state=None, reset=None):
    """Output, state, and the gradients of a loss on both with respect to everything."""
    y, last = layer(x, state, reset=reset)
    results = [y, *last[:3]]
    loss = sum((one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view_as(one)).sum() for one in results)
    return [*results, last.m, *torch.autograd.grad(loss, [x, *layer.parameters(), *(state or ())])]


def assert_equal(got, expected, tolerance):
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("kind", ["fresh", "state", "reset", "no bias", "exp"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_node_equals_projection_and_recurrence(shape, kind, isa, apart, native_calls):
    layer, x, state = case(shape, bias=kind != "no bias", forget_gate="exp" if kind == "exp" else "sigmoid")
    reset = torch.rand(x.shape[:2]) < 0.2 if kind == "reset" else None
    args = layer, x, None if kind == "fresh" else state, reset
    got = outcome(*args)
    assert native_calls
    apart(True)
    assert_equal(got, outcome(*args), 1e-12)


def test_float32_is_as_exact_as_projection_and_recurrence(apart):
    shape = (8, 256, 128, 4, 32)
    layer, x, _ = case(shape, dtype=torch.float32)
    exact, _, _ = case(shape)
    exact.load_state_dict(layer.state_dict())
    expected = outcome(exact, x.detach().double().requires_grad_())

    def errors():
        got = outcome(layer, x)
        return [float((one - other).detach().abs().max() / other.detach().abs().max()) for one, other in zip(got, expected)]

    native = errors()
    apart(True)
    for one, other in zip(native, errors()):
        assert one <= 2 * other + 1e-7


def test_gradients_are_those_of_the_output():
    layer, x, (h, c, n, m) = case((4, 9, 16, 1, 16))
    names, weights = zip(*layer.named_parameters())

    def function(x, h, c, n, *weights):
        y, last = torch.func.functional_call(layer, dict(zip(names, weights)), (x, (h, c, n, m.detach())))
        scale = last.m.detach().exp()  # the state at a fixed gauge
        return y, last.h, last.c * scale, last.n * scale

    assert torch.autograd.gradcheck(function, (x, h, c, n, *weights), fast_mode=True)


def test_no_bit_depends_on_threads_nor_a_row_on_the_others(isa):
    layer, x, state = case((12, 130, 64, 2, 64), dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outcome(layer, x, state)
        torch.set_num_threads(3)
        several = outcome(layer, x, state)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, one, several))
    row = outcome(layer, x[5:6].detach().requires_grad_(), tuple(part[:, 5:6].detach().requires_grad_() for part in state))
    assert torch.equal(row[0], one[0][5:6])


def test_without_gradients_the_same_bits(native_calls):
    layer, x, state = case((2, 40, 32, 2, 16), dtype=torch.float32)
    y, last = layer(x, state)
    with torch.no_grad():
        again, last_again = layer(x, state)
    assert len(native_calls) == 2
    assert torch.equal(y, again) and all(map(torch.equal, last, last_again))


@pytest.mark.parametrize("batch_first", [True, False])
def test_inputs_of_any_strides_are_read(batch_first, native_calls):
    layer, x, _ = case((3, 40, 32, 2, 16), dtype=torch.float32)
    layer.batch_first = batch_first
    x = x.detach() if batch_first else x.detach().transpose(0, 1)
    expected, _ = layer(x.contiguous())
    by_columns = x.transpose(0, 1).contiguous().transpose(0, 1)
    for strange in (by_columns, x.repeat_interleave(2, -1)[..., ::2], x.flip(1).flip(1)):
        assert torch.equal(layer(strange)[0], expected)
    assert len(native_calls) == 4


def test_saved_tensors_may_come_back_in_other_strides():
    layer, x, state = case((3, 40, 32, 2, 16), dtype=torch.float32)
    expected = outcome(layer, x, state)

    def repacked(x):
        return x.unsqueeze(-1).repeat_interleave(2, -1)[..., 0]

    with torch.autograd.graph.saved_tensors_hooks(repacked, lambda x: x):
        assert all(map(torch.equal, outcome(layer, x, state), expected))


def test_a_nan_stays_in_its_row():
    layer, x, _ = case((3, 40, 32, 2, 16), dtype=torch.float32)
    clean = outcome(layer, x)
    with torch.no_grad():
        x[1, 20, 0] = torch.nan
    y, *_, dx, dW = outcome(layer, x)[:7]
    assert y[1, 20:].isnan().all() and torch.equal(y[1, :20], clean[0][1, :20]) and torch.equal(y[::2], clean[0][::2])
    assert dx[1].isnan().any() and torch.equal(dx[::2], clean[5][::2])
    assert dW.isnan().all()  # it is summed over all rows


def test_the_output_may_be_changed_in_place():
    layer, x, _ = case((2, 40, 32, 2, 16), dtype=torch.float32)
    y, _ = layer(x)
    y.mul_(2).sum().backward()
    doubled = x.grad.clone()
    x.grad = None
    (2 * layer(x)[0]).sum().backward()
    assert torch.equal(doubled, x.grad)


def test_what_others_have_to_see_is_left_to_them(native_calls):
    layer, x, _ = case((2, 40, 32, 2, 16), dtype=torch.float32)
    expected = layer(x)[0].detach()
    assert native_calls.pop()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    packed, _ = layer(x.reshape(1, 80, 32), cu_seqlens=torch.tensor([0, 40, 80], dtype=torch.int32))
    torch.testing.assert_close(packed.view(2, 40, 32), expected)
    layer.step(x[:, 0])
    sLSTM(24, 32, num_heads=2)(torch.randn(40, 2, 24))  # features that are no whole vectors
    sLSTM(32, 40, num_heads=2)(torch.randn(40, 2, 32))  # and units
    sLSTM(32, 32, num_heads=2)(torch.randn(15, 2, 32))  # few tokens
    sLSTM(32, 32, num_heads=2, dtype=torch.bfloat16)(torch.randn(40, 2, 32, dtype=torch.bfloat16))
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x)[0], expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slstm_layer_cpu, "LEFT_TO_LIBRARIES", (_C.cpu_isa(),))
        layer(x)
    assert not native_calls


def test_a_second_derivative_is_refused():
    layer, x, _ = case((2, 40, 32, 2, 16), dtype=torch.float32)
    (dx,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        dx.square().sum().backward()


def test_checkpointing_and_offloading_change_no_bit():
    layer, x, _ = case((2, 40, 32, 2, 16), dtype=torch.float32)
    expected = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    with torch.autograd.graph.save_on_cpu():
        offloaded = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    y = torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, offloaded, expected)) and all(map(torch.equal, again, expected))
