"""xlstm_cuda.sLSTM and mLSTM as modules: torch.nn.LSTM's contract, initialisation, errors, and PyTorch's own machinery."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings

import layers_by_hand as by_hand
import pytest
import torch
from test_layers import close
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import xlstm_cuda
from xlstm_cuda import MLSTMState, SLSTMState

I, H, B, S = 5, 8, 3, 6
kinds = pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
STATES = {"sLSTM": SLSTMState, "mLSTM": MLSTMState, "LSTM": tuple}

# ---- torch.nn.LSTM's contract, asked of torch.nn.LSTM too


@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "sLSTM", "mLSTM"])
def test_shapes_and_types_for_every_form_of_input(kind, layers, bidirectional, batch_first):
    layer = {"LSTM": nn.LSTM, **by_hand.KINDS}[kind](I, H, layers, True, batch_first, 0.0, bidirectional)
    D = 2 if bidirectional else 1
    shape = (B, S) if batch_first else (S, B)

    output, state = layer(torch.randn(*shape, I))
    assert type(output) is torch.Tensor and output.dtype == torch.float32
    assert output.shape == (*shape, D * H)
    assert batch_first or output.is_contiguous(), "output.view(-1, features) works"
    assert isinstance(state, STATES[kind])
    assert all(part.shape[:2] == (layers * D, B) and part.dtype == torch.float32 for part in state)
    assert layer(torch.randn(*shape, I), state)[0].shape == output.shape

    output, unbatched = layer(torch.randn(S, I))
    assert output.shape == (S, D * H)
    assert [part.shape for part in unbatched] == [(part.shape[0], *part.shape[2:]) for part in state]
    assert layer(torch.randn(S, I), unbatched)[0].shape == output.shape

    packed = pack_sequence([torch.randn(n, I) for n in (2, 6, 4)], enforce_sorted=False)
    output, state = layer(packed, state)
    assert type(output) is PackedSequence
    assert output.data.shape == (12, D * H)
    for got, expected in zip(output[1:], packed[1:]):
        assert torch.equal(got, expected)
    assert all(part.shape[:2] == (layers * D, B) for part in state)

    assert layer.flatten_parameters() is None
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(layer, name) == getattr(nn.LSTM(I, H, layers, True, batch_first, 0.0, bidirectional), name)


@kinds
def test_parameter_names_and_repr(kind):
    names = {
        "sLSTM": ["weight_ih", "weight_hh", "bias"],
        "mLSTM": ["weight_ih", "weight_gate", "bias", "bias_gate", "weight_norm"],
    }[kind]
    cells = ["l0", "l0_reverse", "l1", "l1_reverse"]
    layer = by_hand.KINDS[kind](I, H, 2, bidirectional=True)
    assert [n for n, _ in layer.named_parameters()] == [f"{n}_{c}" for c in cells for n in names]
    plain = by_hand.KINDS[kind](I, H, bias=False)
    assert not any("bias" in name for name, _ in plain.named_parameters())
    assert repr(plain) == f"{kind}(5, 8, bias=False)"
    options, shown = {
        "sLSTM": ({"forget_gate": "exp"}, "forget_gate='exp'"),
        "mLSTM": (
            {"qk_dim_factor": 0.5, "igate": "sigmoid", "normalize": False},
            "qk_dim_factor=0.5, igate='sigmoid', normalize=False",
        ),
    }[kind]
    layer = by_hand.KINDS[kind](I, H, 2, batch_first=True, dropout=0.1, bidirectional=True, num_heads=2, **options)
    assert repr(layer) == f"{kind}(5, 8, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True, num_heads=2, {shown})"


# ---- initialisation


def test_slstm_starts_with_small_projections_mixing_heads_and_long_memories():
    layer = xlstm_cuda.sLSTM(200, 256, 2)
    for k, features in ((0, 200), (1, 256)):
        W, R = layer.get_parameter(f"weight_ih_l{k}"), layer.get_parameter(f"weight_hh_l{k}")
        assert W.std().item() == pytest.approx(math.sqrt(2 / (5 * features)), rel=0.02)
        assert abs(W.mean().item()) < 1e-3
        assert R.abs().max().item() == pytest.approx(1 / 8, rel=1e-3)
        assert R.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)
        i, f, z, o = layer.get_parameter(f"bias_l{k}").view(4, 4, 64)
        assert not i.any() and not z.any() and not o.any()
        close(f, torch.linspace(3, 6, 64).expand(4, 64), 1e-6)
    exponential = xlstm_cuda.sLSTM(2, 256, forget_gate="exp").bias_l0.view(4, 4, 64)[1]
    close(exponential.exp(), torch.linspace(3, 6, 64).sigmoid().expand(4, 64), 1e-6)  # the same decay per step


def test_mlstm_starts_with_small_projections_and_gates_that_the_input_does_not_move():
    layer = xlstm_cuda.mLSTM(200, 256, 2, num_heads=64)
    for k, features in ((0, 200), (1, 256)):
        W = layer.get_parameter(f"weight_ih_l{k}")
        assert W.shape == (4 * 256, features)
        assert W.std().item() == pytest.approx(math.sqrt(2 / (5 * features)), rel=0.02)
        assert not layer.get_parameter(f"weight_gate_l{k}").any()
        assert not layer.get_parameter(f"bias_l{k}").any()
        i, f = layer.get_parameter(f"bias_gate_l{k}").view(2, 64)
        assert i.std().item() == pytest.approx(0.1, rel=0.4) and abs(i.mean().item()) < 0.05
        close(f, torch.linspace(3, 6, 64), 1e-6)
        assert (layer.get_parameter(f"weight_norm_l{k}") == 1).all()


@kinds
def test_a_fresh_layer_passes_a_signal(kind):
    output, _ = by_hand.KINDS[kind](64, 64)(torch.randn(50, 8, 64))
    assert 0.05 < output.detach().square().mean().sqrt() < 1.0


@kinds
def test_reset_parameters_draws_afresh(kind):
    layer = by_hand.KINDS[kind](I, H, 2, bidirectional=True)
    torch.manual_seed(1)
    fresh = by_hand.KINDS[kind](I, H, 2, bidirectional=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(1)
    layer.reset_parameters()
    for got, expected in zip(layer.parameters(), fresh.parameters()):
        assert torch.equal(got, expected)


@kinds
def test_meta_construction_then_to_empty(kind):
    layer = by_hand.KINDS[kind](I, H, 2, bidirectional=True, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(S, B, I))[0].isfinite().all()


# ---- copies and dtypes


@kinds
def test_copies_and_saved_weights_compute_the_same(kind):
    layer = by_hand.make(kind, I, H, 2, bidirectional=True)
    x = torch.randn(S, B, I, dtype=torch.float64)
    expected = layer(x)[0]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = by_hand.KINDS[kind](I, H, 2, bidirectional=True, dtype=torch.float64)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(copied(x)[0], expected)
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@kinds
def test_output_has_the_parameters_dtype_and_states_are_float32_or_better(kind, dtype):
    layer = by_hand.KINDS[kind](I, H, 2, dtype=dtype)
    x = torch.randn(S, B, I, dtype=dtype)
    output, state = layer(x)
    assert output.dtype == dtype
    assert {part.dtype for part in state} == {torch.float64 if dtype == torch.float64 else torch.float32}
    output, state = layer.step(x[0], state)
    assert output.dtype == dtype
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())


@pytest.mark.parametrize("dtype,u", [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "kind,options,gradients_conditioned",
    [
        ("sLSTM", {}, True),
        ("mLSTM", {"igate": "sigmoid", "normalize": False}, True),
        # Where a head's h is near zero, the derivative of its RMS norm is 1/|h|: no dtype's roundoff bounds the gradient's error.
        ("mLSTM", {}, False),
    ],
    ids=["sLSTM", "mLSTM-not normalized", "mLSTM"],
)
def test_autocast_runs_forward_backward_and_step(kind, options, gradients_conditioned, dtype, u):
    layer = by_hand.make(kind, 16, 32, dtype=torch.float32, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 0.5
    x = torch.randn(20, B, 16, requires_grad=True)
    leaves = [x, *layer.parameters()]
    expected, _ = layer(x)
    true = torch.autograd.grad(expected.square().sum(), leaves)
    with torch.autocast("cpu", dtype):
        output, state = layer(x)
        stepped, _ = layer.step(x[0])
        again, _ = layer(x.to(dtype))
    assert output.dtype == stepped.dtype == again.dtype == dtype
    assert {part.dtype for part in state} == {torch.float32}
    got = torch.autograd.grad(output.float().square().sum(), leaves)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in got)

    def error(a, b):
        return ((a.float() - b).norm() / b.norm()).item()

    assert max(error(output, expected), error(stepped, expected[0])) < 8 * u
    if gradients_conditioned:
        assert max(error(a, b) for a, b in zip(got, true)) < 4 * u


# ---- compilation


@kinds
def test_compiles_whole_with_one_recompile_over_five_lengths(kind):
    torch._dynamo.reset()
    graphs = []
    layer = by_hand.make(kind, I, H, bidirectional=True)

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(layer, fullgraph=True, backend=count)
    for steps in (5, 6, 9, 17, 40):
        x = torch.randn(steps, B, I, dtype=torch.float64, requires_grad=True)
        output, state = compiled(x)
        true, true_state = layer(x)
        close((output, *state), (true, *true_state))
        leaves = [x, *layer.parameters()]
        close(torch.autograd.grad(output.sum(), leaves), torch.autograd.grad(true.sum(), leaves))
    assert len(graphs) <= 2


# ---- errors


def raises(error, *parts):
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


@pytest.mark.parametrize(
    "arguments,options,error,parts",
    [
        ((0, 8), {}, ValueError, ("input_size", "0", "at least 1")),
        ((5, -8), {}, ValueError, ("hidden_size", "-8", "at least 1")),
        ((5, 8, 0), {}, ValueError, ("num_layers", "0", "at least 1")),
        ((5.0, 8), {}, TypeError, ("input_size", "float", "int")),
        ((5, 8, 1, 1), {}, TypeError, ("bias", "int", "bool")),
        ((5, 8), {"batch_first": 1}, TypeError, ("batch_first", "int", "bool")),
        ((5, 8), {"dropout": 1.5}, ValueError, ("dropout", "1.5", "0 to 1")),
        ((5, 8), {"dropout": True}, ValueError, ("dropout", "True")),
        ((5, 10), {}, ValueError, ("hidden_size", "10", "multiple of num_heads = 4")),
        ((5, 8), {"num_heads": 0}, ValueError, ("num_heads", "0", "at least 1")),
        ((5, 8), {"proj_size": 4}, TypeError, ("proj_size",)),
    ],
    ids=str,
)
@kinds
def test_constructor_raises(kind, arguments, options, error, parts):
    with warnings.catch_warnings(), raises(error, *parts):
        warnings.simplefilter("ignore")
        by_hand.KINDS[kind](*arguments, **options)


def test_cell_options_raise():
    with raises(ValueError, "forget_gate", "'tanh'", "'sigmoid', 'exp'"):
        xlstm_cuda.sLSTM(I, H, forget_gate="tanh")
    with raises(ValueError, "igate", "'relu'", "'exp', 'sigmoid'"):
        xlstm_cuda.mLSTM(I, H, igate="relu")
    with raises(ValueError, "normalize", "False", "'exp'"):
        xlstm_cuda.mLSTM(I, H, normalize=False)
    for factor in (0.25, 0.3, 0.0, -1.0):
        with raises(ValueError, "qk_dim_factor", str(factor), "multiple of num_heads = 4"):
            xlstm_cuda.mLSTM(I, H, qk_dim_factor=factor)


@pytest.mark.parametrize(
    "input,error,parts",
    [
        ([[1.0]], TypeError, ("input", "list", "torch.Tensor or PackedSequence")),
        (torch.randn(I), ValueError, ("input", "(5,)", "(S, B, input_size) or (S, input_size)")),
        (torch.randn(1, S, B, I), ValueError, ("input", f"(1, {S}, {B}, {I})", "(S, B, input_size)")),
        (torch.randn(S, B, I + 1), ValueError, ("input", f"{(S, B, I + 1)}", "input_size = 5")),
        (torch.ones(S, B, I, dtype=torch.int64), TypeError, ("input", "int64", "float32")),
        (torch.randn(S, B, I).double(), TypeError, ("input", "float64", "float32")),
        (torch.randn(S, B, I, device="meta"), ValueError, ("input", "meta", "cpu")),
        (pack_sequence([torch.randn(3, I + 1)]), ValueError, ("input", "(3, 6)", "input_size = 5")),
        (pack_sequence([torch.randn(3, I).bfloat16()]), TypeError, ("input", "bfloat16", "float32")),
        (pack_sequence([torch.randn(3, B, I)]), ValueError, ("input", f"(3, {B}, {I})", "PackedSequence")),
    ],
    ids=range(10),
)
@kinds
def test_input_raises(kind, input, error, parts):
    with raises(error, *parts):
        by_hand.KINDS[kind](I, H)(input)


@kinds
def test_step_input_raises(kind):
    layer = by_hand.KINDS[kind](I, H)
    with raises(ValueError, "x", f"{(1, B, I)}", "(B, input_size) or (input_size,)"):
        layer.step(torch.randn(1, B, I))
    with raises(ValueError, "x", f"{(B, I + 1)}", "input_size = 5"):
        layer.step(torch.randn(B, I + 1))
    with raises(TypeError, "x", "PackedSequence", "torch.Tensor"):
        layer.step(pack_sequence([torch.randn(3, I)]))


@kinds
def test_state_raises(kind):
    layer = by_hand.KINDS[kind](I, H, 2)
    other = by_hand.KINDS["mLSTM" if kind == "sLSTM" else "sLSTM"](I, H, 2)
    x = torch.randn(S, B, I)
    good = by_hand.random_state(layer, B, dtype=torch.float32)
    name, shape = good._fields[0], tuple(good[0].shape)
    packed = pack_sequence([torch.randn(3, I)] * B)
    for run, input in ((layer, x), (layer, packed), (layer.step, x[0])):
        run(input, good)
        run(input, list(good))
        with raises(ValueError, "state", f"{len(other.state_shapes())} tensors", f"({', '.join(good._fields)})"):
            run(input, by_hand.random_state(other, B, dtype=torch.float32))
        with raises(ValueError, "state", "2 tensors", f"({', '.join(good._fields)})"):
            run(input, good[:2])  # nn.LSTM's (h, c)
        with raises(ValueError, f"state.{name}", f"{(1, *shape[1:])}", "(num_layers * num_directions, B, NH", f"{shape}"):
            run(input, tuple(part[:1] for part in good))
        with raises(ValueError, f"state.{name}", f"{(shape[0], *shape[2:])}", f"{shape}"):
            run(input, tuple(part[:, 0] for part in good))
        with raises(ValueError, f"state.{name}", f"{(2, B - 1, *shape[2:])}", f"{shape}"):
            run(input, tuple(part[:, 1:] for part in good))
        with raises(TypeError, f"state.{name}", "float64", "float32"):
            run(input, tuple(part.double() for part in good))
        with raises(TypeError, "state", "Tensor", "tuple"):
            run(input, good[0])
    for run, input in ((layer, x[:, 0]), (layer.step, x[0, 0])):
        run(input, tuple(part[:, 0] for part in good))
        with raises(ValueError, f"state.{name}", f"{shape}", "(num_layers * num_directions, NH", f"{(shape[0], *shape[2:])}"):
            run(input, good)
