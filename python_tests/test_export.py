"""Exported, traced and functionalised programs train: the ops carry their gradients, and states travel through torch.export."""

from __future__ import annotations

import io

import mlstm_cases
import pytest
import slstm_cases
import torch
from mlstm_cases import Case
from test_torch import KINDS, OutputOnly, float64_by_default, make, run, sample  # noqa: F401
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import xlstm_cuda
from xlstm_cuda import functional

every_kind = pytest.mark.parametrize("kind", KINDS)
in_float64 = pytest.mark.usefixtures("float64_by_default")  # head norms show the rounding of another convolution


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    y = model(x)
    y.square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **found, **({"x": x.grad} if x.grad is not None else {})}


@in_float64
@every_kind
@pytest.mark.parametrize("grad", [True, False], ids=["exported for training", "exported under no_grad"])
def test_exported_modules_train(kind, grad):
    model = OutputOnly(make(kind))
    x = sample(kind, 9).detach()
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model, (x,))
    exported = program.module()
    expected, got = gradients(model, x), gradients(exported, x)
    assert got.keys() == expected.keys() and len(got) > 2
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)
    optimiser = torch.optim.SGD(exported.parameters(), lr=0.1)
    optimiser.step()
    assert not torch.equal(exported(x), got["y"])


@in_float64
@every_kind
def test_decomposed_programs_train(kind):
    model = OutputOnly(make(kind))
    x = sample(kind, 9).detach()
    exported = torch.export.export(model, (x,)).run_decompositions().module()
    for name, value in gradients(model, x).items():
        torch.testing.assert_close(gradients(exported, x)[name], value, msg=name)


class Everything(nn.Module):
    """Output and state, in and out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, state):
        return run(self.model, x, state)


@in_float64
@every_kind
def test_programs_with_states_are_saved_and_loaded(kind):
    model = Everything(make(kind)).eval()
    x = sample(kind, 9).detach()
    with torch.no_grad():
        _, state = model(x, None)
        program = torch.export.export(model, (x, state))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        got, expected = loaded(x, state), model(x, state)
    assert type(got) is type(expected)
    assert [type(s) for s in tree_leaves(got)] == [type(s) for s in tree_leaves(expected)]
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


class Packed(nn.Module):
    """Logits of packed documents, some of which start afresh in the middle."""

    def __init__(self, kind: str):
        super().__init__()
        self.model = make(kind)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor, reset: torch.Tensor):
        return self.model(x, None, True, cu_seqlens=cu_seqlens, reset=reset)[0]


def documents(kind: str, *lengths: int) -> tuple[torch.Tensor, ...]:
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    x = sample(kind, sum(lengths), B=1).detach()
    return x, borders, torch.rand(1, sum(lengths)) < 0.2


@in_float64
@pytest.mark.parametrize(
    ("how", "kind"),
    [("exported", "LM"), ("exported", "Large"), ("compiled", "Large"), pytest.param("compiled", "LM", marks=pytest.mark.deep)],
)
def test_packed_documents_under_the_compiler(how, kind):
    """One program for all lengths and numbers of documents from two on, with the eager outputs and gradients."""
    model = Packed(kind)
    first = documents(kind, 5, 1, 7)
    if how == "compiled":
        program = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    else:
        S, N = torch.export.Dim("S", min=2, max=4096), torch.export.Dim("N", min=3, max=64)
        program = torch.export.export(model, first, dynamic_shapes=({1: S}, {0: N}, {1: S})).module()
    weights = [p for p in model.parameters() if p.requires_grad]
    for batch in (first, documents(kind, 3, 9, 0, 20), documents(kind, 4, 4)):
        results = []
        for call in (model, program):
            y = call(*batch)
            own = weights if call is model or how == "compiled" else list(program.parameters())
            results.append([y, *torch.autograd.grad(y.square().mean(), own)])
        for got, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(got, expected)


def operands(cell: str, backend: str) -> tuple:
    """A function of differentiable tensors, and these."""
    device = mlstm_cases.device_of(backend)
    if cell == "mlstm":
        tensors = [t.detach().to(device) for t in mlstm_cases.inputs(Case(S=20, dtype=torch.float32, state=True))]
        return lambda *t: functional.mlstm(*t[:5], state=t[5:], backend=backend), tensors
    if cell == "mlstm_step":
        tensors = [t.detach().to(device) for t in mlstm_cases.inputs(Case(S=1, dtype=torch.float32, state=True))]
        tensors = [t[:, 0] if index < 5 else t for index, t in enumerate(tensors)]
        return lambda *t: functional.mlstm_step(*t[:5], t[5:], backend=backend)[0], tensors
    case = slstm_cases.make_case(2, 5, 2, 8).to(torch.float32).on(device)
    tensors = [case.x, case.R, case.b, *case.state]
    if cell == "slstm_step":
        return lambda x, R, b, *s: functional.slstm_step(x, R, b, s, backend=backend)[0], [case.x[:, 0], *tensors[1:]]
    every = 2 if cell == "slstm checkpointed" else None
    return lambda x, R, b, *s: functional.slstm(x, R, b, state=s, checkpoint_every=every, backend=backend), tensors


CELLS = ("mlstm", "mlstm_step", "slstm", "slstm checkpointed", "slstm_step")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("trace", ["make_fx", "functionalize", "export", "export under no_grad"])
def test_traced_functions_have_the_eager_gradients(cell, trace, backend):
    function, tensors = operands(cell, backend)
    if trace == "make_fx":
        traced = make_fx(function)(*tensors)
    elif trace == "functionalize":
        traced = torch.func.functionalize(function)
    else:

        class Module(nn.Module):
            def forward(self, *t):
                return function(*t)

        with torch.set_grad_enabled(trace == "export"):
            traced = torch.export.export(Module(), tuple(tensors)).module()
    results = []
    for call in (function, traced):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        h = call(*leaves)
        results.append([h, *torch.autograd.grad(h.square().sum(), leaves, allow_unused=True)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_torch_func_refusals_name_the_package(cell, backend):
    function, tensors = operands(cell, backend)

    def loss(x):
        return function(x, *tensors[1:]).square().sum()

    tangent = (torch.ones_like(tensors[0]),)
    for refused in (
        lambda: torch.func.jvp(loss, (tensors[0],), tangent),
        lambda: torch.func.hessian(loss)(tensors[0]),
        lambda: torch.func.grad(loss)(tensors[0]),
        lambda: torch.func.vmap(loss)(torch.stack([tensors[0]] * 2)),
    ):
        with pytest.raises(RuntimeError, match=r"xlstm_cuda: .*not supported by the kernels; use backend='reference'"):
            refused()


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen weights"])
@pytest.mark.parametrize("cell", ["mlstm", "slstm", "slstm checkpointed"])
def test_a_gradient_penalty_raises_whatever_requires_a_gradient(cell, frozen, backend):
    """Also where x alone does, so that no operand of the backward itself requires one."""
    function, tensors = operands(cell, backend)
    x = tensors[0].clone().requires_grad_()
    others = tensors[1:] if frozen else [t.clone().requires_grad_() for t in tensors[1:]]
    h = function(x, *others)
    (dx,) = torch.autograd.grad(h, x, torch.ones_like(h), create_graph=True)
    with pytest.raises(RuntimeError, match=r"xlstm_cuda: .*double backward"):
        (dx.square().sum() + h.sum()).backward()


def test_states_are_registered_with_pytree():
    for state in (xlstm_cuda.MLSTMState(*torch.zeros(3)), xlstm_cuda.SLSTMState(*torch.zeros(4))):
        leaves, spec = torch.utils._pytree.tree_flatten(state)
        text = torch.utils._pytree.treespec_dumps(spec)
        again = torch.utils._pytree.tree_unflatten(leaves, torch.utils._pytree.treespec_loads(text))
        assert type(again) is type(state) and all(torch.equal(a, b) for a, b in zip(again, state))


def test_forward_mode_raises_with_checkpoints_too():
    case = slstm_cases.make_case(2, 5, 2, 8).to(torch.float32)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"xlstm_cuda: slstm: forward mode AD"):
        x = torch.autograd.forward_ad.make_dual(case.x, torch.ones_like(case.x))
        functional.slstm(x, case.R, checkpoint_every=2)
