"""Bad input to the functional API raises a typed error that names the operand, what it got and what is expected."""

from __future__ import annotations

import re

import pytest
import torch

import xlstm_cuda
from xlstm_cuda import MLSTMState, SLSTMState, functional

B, S, NH, DHQK, DHHV, DH = 2, 5, 3, 8, 16, 8
OPERANDS = {"mlstm": "qkvif", "slstm": "xRb"}


def mlstm_operands() -> dict:
    return {
        "q": torch.randn(B, S, NH, DHQK),
        "k": torch.randn(B, S, NH, DHQK),
        "v": torch.randn(B, S, NH, DHHV),
        "i": torch.randn(B, S, NH),
        "f": torch.randn(B, S, NH),
    }


def slstm_operands() -> dict:
    return {"x": torch.randn(B, S, 4, NH, DH), "R": torch.randn(4, NH, DH, DH), "b": torch.randn(4, NH, DH)}


def mlstm_state() -> tuple:
    return torch.zeros(B, NH, DHQK, DHHV), torch.zeros(B, NH, DHQK), torch.zeros(B, NH)


def slstm_state() -> tuple:
    return tuple(torch.zeros(B, NH, DH) for _ in range(4))


def raises(error: type, *parts: str):
    """The error's message holds every part, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


def call(op: str, **change) -> None:
    """The op on good operands but for the change, of an operand or an option."""
    arguments = (mlstm_operands() if op == "mlstm" else slstm_operands()) | change
    operands = [arguments.pop(name) for name in OPERANDS[op]]
    getattr(functional, op)(*operands, **arguments)


def names_the_change(value: object) -> str:
    """For the ids of cases (change, error, parts)."""
    return next(iter(value)) if isinstance(value, dict) else ""


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize(
    "change,error,parts",
    [
        ({"q": [1.0]}, TypeError, ("q", "list", "torch.Tensor")),
        ({"i": None}, TypeError, ("i", "NoneType", "torch.Tensor")),
        ({"q": torch.ones(B, S, NH, DHQK, dtype=torch.int64)}, TypeError, ("q", "int64", "float32")),
        ({"k": torch.randn(B, S, NH, DHQK).bfloat16()}, TypeError, ("k", "bfloat16", "float32")),
        ({"v": torch.randn(B, S, NH, DHHV).double()}, TypeError, ("v", "float64", "float32")),
        ({"f": torch.randn(B, S, NH).half()}, TypeError, ("f", "float16", "float32")),
        ({"q": torch.randn(B, S, DHQK)}, ValueError, ("q", f"{(B, S, DHQK)}", "(B, S, NH, DHQK)")),
        ({"k": torch.randn(B, S, NH, DHQK + 1)}, ValueError, ("k", f"{(B, S, NH, DHQK + 1)}", f"{(B, S, NH, DHQK)}")),
        ({"v": torch.randn(B, S + 1, NH, DHHV)}, ValueError, ("v", f"{(B, S + 1, NH, DHHV)}", f"{(B, S, NH, DHHV)}")),
        ({"i": torch.randn(B, S, 1)}, ValueError, ("i", f"{(B, S, 1)}", f"{(B, S, NH)}")),
        ({"f": torch.randn(B, S, NH, 1)}, ValueError, ("f", f"{(B, S, NH, 1)}", f"{(B, S, NH)}")),
        ({"k": torch.randn(B, S, NH, DHQK, device="meta")}, ValueError, ("k", "meta", "cpu")),
        ({"igate": "relu"}, ValueError, ("igate", "'relu'", "'exp', 'sigmoid'")),
        ({"normalize": False}, ValueError, ("normalize", "False", "'exp'", "True")),
        ({"eps": -1e-6}, ValueError, ("eps", "-1e-06", "at least 0")),
        ({"eps": float("nan")}, ValueError, ("eps", "nan", "at least 0")),
        ({"normalizer_grad": "none"}, ValueError, ("normalizer_grad", "'none'", "'exact', 'detached'")),
        ({"chunk_size": 48}, ValueError, ("chunk_size", "48", "16, 32, 64, 128, 256")),
        ({"backend": "triton"}, ValueError, ("backend", "'triton'", "'cuda', 'cpu', 'simt', 'reference'")),
        ({"state": torch.zeros(3)}, TypeError, ("state", "Tensor", "(C, n, m)")),
        ({"state": (*mlstm_state()[:2], None)}, ValueError, ("state", "2 tensors", "(C, n, m)")),
        ({"state": slstm_state()}, ValueError, ("state", "4 tensors", "(C, n, m)")),
        ({"state": (*mlstm_state()[:2], torch.zeros(B, NH, 1))}, ValueError, ("state.m", f"{(B, NH, 1)}", f"{(B, NH)}")),
        ({"state": (torch.zeros(B, NH, DHHV, DHQK), *mlstm_state()[1:])}, ValueError, ("state.C", f"{(B, NH, DHHV, DHQK)}")),
        ({"state": tuple(x.bfloat16() for x in mlstm_state())}, TypeError, ("state.C", "bfloat16", "float32")),
        ({"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)}, ValueError, ("cu_seqlens", "B = 1", "B = 2")),
        ({"cu_seqlens": torch.tensor([0, 5])}, TypeError, ("cu_seqlens", "int64", "int32")),
    ],
    ids=names_the_change,
)
def test_mlstm_raises(change, error, parts, backend):
    with raises(error, *parts):
        call("mlstm", **{"backend": backend, **change})


@pytest.mark.parametrize("borders", [[0, 3], [1, 5], [0, 4, 2, 5], [-1, 5], []], ids=str)
@pytest.mark.parametrize("op", ["mlstm", "slstm"])
def test_cu_seqlens_must_rise_from_0_to_S(op, borders):
    operands = mlstm_operands() if op == "mlstm" else slstm_operands()
    first = {name: x[:1] if name in "qkvifx" else x for name, x in operands.items()}
    with raises(ValueError, "cu_seqlens", "expected", "S"):
        getattr(functional, op)(*first.values(), cu_seqlens=torch.tensor(borders, dtype=torch.int32))


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize(
    "change,error,parts",
    [
        ({"x": "x"}, TypeError, ("x", "str", "torch.Tensor")),
        ({"x": torch.ones(B, S, 4, NH, DH, dtype=torch.int32)}, TypeError, ("x", "int32", "float32")),
        ({"x": torch.randn(B, S, NH, 4, DH)}, ValueError, ("x", f"{(B, S, NH, 4, DH)}", "(B, S, 4, NH, DH)")),
        ({"x": torch.randn(B, S, 4 * NH * DH)}, ValueError, ("x", f"{(B, S, 4 * NH * DH)}", "(B, S, 4, NH, DH)")),
        ({"R": torch.randn(4, NH, DH, DH + 1)}, ValueError, ("R", f"{(4, NH, DH, DH + 1)}", f"{(4, NH, DH, DH)}")),
        ({"R": torch.randn(NH, 4 * DH, DH)}, ValueError, ("R", f"{(NH, 4 * DH, DH)}", f"{(4, NH, DH, DH)}")),
        ({"R": torch.randn(4, NH, DH, DH).half()}, TypeError, ("R", "float16", "float32")),
        ({"R": None}, TypeError, ("R", "NoneType")),
        ({"b": torch.randn(4 * NH * DH)}, ValueError, ("b", f"{(4 * NH * DH,)}", f"{(4, NH, DH)}")),
        ({"b": torch.randn(4, NH, DH, device="meta")}, ValueError, ("b", "meta", "cpu")),
        ({"forget_gate": "tanh"}, ValueError, ("forget_gate", "'tanh'", "'sigmoid', 'exp'")),
        ({"reset": torch.zeros(B, S)}, TypeError, ("reset", "float32", "bool")),
        ({"reset": torch.zeros(S, B, dtype=torch.bool)}, ValueError, ("reset", f"{(S, B)}", f"{(B, S)}")),
        ({"state": slstm_state()[:3]}, ValueError, ("state", "3 tensors", "(h, c, n, m)")),
        ({"state": tuple(x[..., :4] for x in slstm_state())}, ValueError, ("state.h", f"{(B, NH, 4)}", f"{(B, NH, DH)}")),
        ({"state": tuple(x.double() for x in slstm_state())}, TypeError, ("state.h", "float64", "float32")),
        ({"backend": "numpy"}, ValueError, ("backend", "'numpy'")),
    ],
    ids=names_the_change,
)
def test_slstm_raises(change, error, parts, backend):
    with raises(error, *parts):
        call("slstm", **{"backend": backend, **change})


def test_steps_raise_for_a_sequence_and_for_a_missing_state():
    operands = mlstm_operands()
    with raises(ValueError, "q", f"{(B, S, NH, DHQK)}", "(B, NH, DHQK)"):
        functional.mlstm_step(*operands.values(), mlstm_state())
    with raises(TypeError, "state", "NoneType"):
        functional.mlstm_step(*(x[:, 0] for x in operands.values()), None)
    x, R, b = slstm_operands().values()
    with raises(ValueError, "x", f"{(B, S, 4, NH, DH)}", "(B, 4, NH, DH)"):
        functional.slstm_step(x, R, b, slstm_state())


def test_plain_tuples_are_states():
    h = functional.mlstm(*mlstm_operands().values(), state=list(mlstm_state()))
    assert h.shape == (B, S, NH, DHHV)
    out, state = functional.slstm_step(*(x[:, 0] if n == "x" else x for n, x in slstm_operands().items()), slstm_state())
    assert isinstance(state, SLSTMState) and out.shape == (B, NH, DH)
    _, state = functional.mlstm_step(*(x[:, 0] for x in mlstm_operands().values()), mlstm_state())
    assert isinstance(state, MLSTMState)


def test_backends_lists_what_is_usable_and_why_the_others_are_not():
    found = xlstm_cuda.backends()
    assert list(found) == ["cuda", "cpu", "simt", "reference"]
    assert found["cpu"] and found["reference"]
    assert all(backend.reason for backend in found.values())


@pytest.mark.parametrize("name", ["cuda", "simt"])
def test_backend_that_is_not_usable_raises_with_the_reason(name):
    found = xlstm_cuda.backends()[name]
    if found:
        pytest.skip(f"backend {name} is usable here")
    with raises(RuntimeError, name, found.reason):
        functional.mlstm(*mlstm_operands().values(), backend=name)


@pytest.mark.parametrize("op", ["mlstm", "slstm"])
def test_double_backward_raises_and_never_gives_silent_zeros(op):
    operands = [x.requires_grad_() for x in (mlstm_operands() if op == "mlstm" else slstm_operands()).values()]
    h = getattr(functional, op)(*operands)
    # The incoming gradient of h.sum() is a constant: torch's once_differentiable alone would let the penalty's part vanish.
    (gradient,) = torch.autograd.grad(h.sum(), operands[0], create_graph=True)
    with raises(RuntimeError, op, "double backward", "reference"):
        (h.sum() + gradient.square().sum()).backward()


@pytest.mark.parametrize("op", ["mlstm", "slstm"])
def test_forward_mode_raises(op):
    first, *others = (mlstm_operands() if op == "mlstm" else slstm_operands()).values()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"xlstm_cuda: .*forward mode AD"):
        getattr(functional, op)(torch.autograd.forward_ad.make_dual(first, torch.ones_like(first)), *others)
