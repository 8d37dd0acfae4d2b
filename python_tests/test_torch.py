"""Layers, blocks and models under PyTorch's machinery: compile, export, autocast, checkpointing, copies, refused gradients."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from test_blocks import VOCAB, D, build
from torch import nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import xlstm_cuda
from xlstm_cuda import xLSTMLarge, xLSTMLargeConfig

LAYERS = ("sLSTM", "mLSTM")
KINDS = (*LAYERS, "mLSTMBlock", "sLSTMBlock", "stack", "LM", "Large")
every_kind = pytest.mark.parametrize("kind", KINDS)
LENGTHS = (5, 6, 9, 17, 70)


@pytest.fixture
def float64_by_default():
    """Compiled code sums in another order than the native kernels: in float32 a head norm that divides by a small h shows it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(kind: str) -> nn.Module:
    """A small model; `run` gives output and state of each."""
    if kind in LAYERS:
        return getattr(xlstm_cuda, kind)(D, D, batch_first=True)
    if kind == "Large":
        return xLSTMLarge(xLSTMLargeConfig(embedding_dim=D, num_heads=2, num_blocks=1, vocab_size=VOCAB, return_last_states=True))
    return build(kind)


def sample(kind: str, S: int = 9, B: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCAB, (B, S)) if kind in ("LM", "Large") else torch.randn(B, S, D, requires_grad=True)


def run(model: nn.Module, x: torch.Tensor, state=None):
    """Output and state of any kind of model."""
    if hasattr(model, "xlstm_norm") or hasattr(model, "blocks") or hasattr(model, "xlstm_block_stack"):
        return model(x, state, return_last_state=True)
    return model(x, state)


def before(kind: str, model: nn.Module):
    """A state that requires gradients, as it comes out of an earlier piece of the sequence."""
    with torch.no_grad():
        _, state = run(model, sample(kind, 7))
    return tree_map(lambda t: t.clone().requires_grad_(), state)


def loss(model: nn.Module, x: torch.Tensor, state) -> torch.Tensor:
    """Of the output and of the state after it."""
    y, last = run(model, x, state)
    return y.square().mean() + sum(t.square().mean() for t in tree_leaves(last) if t.requires_grad)


def gradients(function, model: nn.Module, x: torch.Tensor, state) -> list[torch.Tensor]:
    leaves = [t for t in (x, *tree_leaves(state), *model.parameters()) if t is not None and t.requires_grad]
    value = function(model, x, state)
    return [value, *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.deep) if k == "stack" else k for k in KINDS]
)  # the LM has one
def test_compiles_whole_with_one_recompile_over_five_lengths(kind, float64_by_default):
    torch._dynamo.reset()
    model, graphs = make(kind), []
    state = before(kind, model)

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(loss, fullgraph=True, backend=count)
    for S in LENGTHS:
        x = sample(kind, S)
        for got, expected in zip(gradients(compiled, model, x, state), gradients(loss, model, x, state)):
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
    assert len(graphs) <= 2


class OutputOnly(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run(self.model, x)[0]


@every_kind
def test_exports_with_a_dynamic_length(kind):
    model = make(kind).eval()
    x = sample(kind, 9).detach()
    S = torch.export.Dim("S", min=2, max=4096)
    program = torch.export.export(OutputOnly(model), (x,), dynamic_shapes=[{1: S}])
    exported = program.module()
    with torch.no_grad():
        for length in (2, 9, 70):
            x = sample(kind, length).detach()
            torch.testing.assert_close(exported(x), run(model, x)[0])


@every_kind
def test_steps_compile_whole(kind):
    torch._dynamo.reset()
    model = make(kind).eval()

    def step(token, state):
        return model.step(token, state) if hasattr(model, "step") else model(token, state)

    with torch.no_grad():
        _, state = run(model, sample(kind))
        token = sample(kind, 1).squeeze(1) if kind in LAYERS else sample(kind, 1)
        expected = step(token, state)
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(token, state)
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_float32_parameters(kind, dtype):
    model, x = make(kind), sample(kind, 70)
    with torch.no_grad():
        expected, _ = run(model, x)
    with torch.autocast("cpu", dtype):
        y, state = run(model, x)
    assert y.dtype in (dtype, torch.float32)
    assert (y.float() - expected).norm() <= 5e-2 * expected.norm()
    recurrent = [t for t in tree_leaves(state) if t.dim() != 3 or t.shape[0] == 4 or kind in ("Large", *LAYERS)]
    assert {t.dtype for t in recurrent} == {torch.float32}
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
def test_activation_checkpointing_gives_the_same_gradients(kind, use_reentrant):
    model, x = make(kind), sample(kind)
    expected = gradients(lambda model, x, _: run(model, x)[0].square().mean(), model, x, None)

    model.zero_grad()
    anchor = torch.ones((), requires_grad=True)  # the reentrant form wants an input with gradient
    value = checkpoint(lambda _, x: run(model, x)[0].square().mean(), anchor, x, use_reentrant=use_reentrant)
    value.backward()
    got = [value, *(t.grad for t in (x, *model.parameters()) if t.requires_grad)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_kind
def test_copies_and_saved_weights_compute_the_same(kind):
    model, x = make(kind).eval(), sample(kind)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = make(kind).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = run(model, x)[0]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
            assert torch.equal(run(twin, x)[0], expected)


@every_kind
def test_meta_device_then_to_empty_and_reset_parameters(kind):
    with torch.device("meta"):
        model = make(kind)
        y, state = run(model, sample(kind))
        step = model.step if hasattr(model, "step") else model
        token, _ = step(sample(kind, 1).squeeze(1) if kind in LAYERS else sample(kind, 1), state)
    assert all(t.is_meta for t in (y, token, *model.parameters(), *tree_leaves(state)))
    model = model.to_empty(device="cpu")
    model.reset_parameters()
    assert run(model, sample(kind))[0].isfinite().all()


@every_kind
def test_flop_counter_counts_forward_and_backward(kind):
    model, x = make(kind), sample(kind)
    with FlopCounterMode(display=False) as counter:
        run(model, x)[0].square().mean().backward()
    counts = {op.__name__: count for op, count in counter.get_flop_counts()["Global"].items()}
    cells = {"sLSTM": "slstm", "mLSTM": "mlstm", "mLSTMBlock": "mlstm", "sLSTMBlock": "slstm", "Large": "mlstm"}
    for cell in [cells[kind]] if kind in cells else ["mlstm", "slstm"]:
        assert 0 < counts[f"{cell}_forward"] < counts[f"{cell}_backward"]


@every_kind
def test_double_backward_and_forward_mode_raise(kind):
    model, x = make(kind), sample(kind)
    weight = next(model.parameters())
    (dw,) = torch.autograd.grad(run(model, x)[0].square().mean(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported by the kernels"):
        dw.square().sum().backward()
    name = next(name for name, p in model.named_parameters() if p is weight)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        dual = {name: forward_ad.make_dual(weight.detach(), torch.ones_like(weight))}
        torch.func.functional_call(OutputOnly(model), {f"model.{key}": value for key, value in dual.items()}, (x,))
