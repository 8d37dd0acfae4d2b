"""The scalar cell (csrc/slstm/cell.cuh) and the gate functions it is made of (csrc/device/math.cuh), through the CPU backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_fixture import isa_fixture
from torch import Tensor

from xlstm_cuda import functional
from xlstm_cuda.native import _C

INF = float("inf")
NAN = float("nan")
isa = isa_fixture()


def gate_function(name: str, x: Tensor | list[float]) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float32).contiguous()
    y = torch.empty_like(x)
    _C.gate_math(getattr(_C.GateFunction, name), x.data_ptr(), y.data_ptr(), x.numel())
    return y


def spread(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 200_003, dtype=torch.float64).float()


LOG2E = math.log2(math.e)
ACCURACY = [
    # function, arguments, truth, largest error in units of the last place
    ("exp2", spread(-126, 0), torch.exp2, 1.3),
    ("exp2", spread(-1, 0), torch.exp2, 1.3),
    ("exp2", spread(0, 127), torch.exp2, 1.3),
    ("log2", torch.exp2(spread(-126, 127)), torch.log2, 2),
    ("log2", spread(0.7, 1.5), torch.log2, 2),
    ("log2_1p", spread(0, 1), lambda x: torch.log1p(x) * LOG2E, 3.2),
    ("log2_1p", torch.exp2(spread(-120, 0)), lambda x: torch.log1p(x) * LOG2E, 3.2),
    ("rcp", torch.exp2(spread(-120, 120)), torch.reciprocal, 0.51),
    ("sigmoid", spread(-1, 1), torch.sigmoid, 3),
    ("log_sigmoid", spread(-1, 1), torch.nn.functional.logsigmoid, 4),
    # the exponent |x| log2(e) is rounded, so far tails lose |x| / 2 units of the last place
    ("sigmoid", spread(-80, 80), torch.sigmoid, 80),
    ("log_sigmoid", spread(-1000, 80), torch.nn.functional.logsigmoid, 80),
]


@pytest.mark.parametrize(("function", "x", "truth", "ulps"), ACCURACY, ids=[f"{a[0]}-{i}" for i, a in enumerate(ACCURACY)])
def test_gate_math_is_accurate(isa, function, x, truth, ulps):
    got, expected = gate_function(function, x).double(), truth(x.double())
    ulp = torch.from_numpy(np.spacing(expected.float().abs().numpy())).double()
    normal = expected.abs() >= 2.0**-126
    assert ((got - expected).abs() / ulp)[normal].max() <= ulps
    assert (got[~normal] == 0).all()


LIMITS = [
    ("exp2", [0.0, -0.0, -INF, NAN, -126.0, -126.5, -149.0, -1e30], [1, 1, 0, NAN, 2.0**-126, 0, 0, 0]),
    ("log2", [0.0, -1.0, INF, NAN, 1e-40, 1.0, 2.0**-126], [-INF, NAN, INF, NAN, -INF, 0, -126]),
    ("log2_1p", [0.0, 1.0, NAN], [0, 1, NAN]),
    ("rcp", [1.0, INF, NAN, -2.0], [1, 0, NAN, -0.5]),
    ("sigmoid", [-INF, INF, NAN, 0.0, -1e4], [0, 1, NAN, 0.5, 0]),
    ("log_sigmoid", [-INF, INF, NAN, -1e4], [-INF, 0, NAN, -1e4]),
]


@pytest.mark.parametrize(("function", "x", "expected"), LIMITS, ids=[limit[0] for limit in LIMITS])
def test_gate_math_has_the_right_limits(isa, function, x, expected):
    repeated = gate_function(function, x * 40).view(40, -1)  # every position of a vector
    assert torch.equal(repeated.nan_to_num(7.5), torch.tensor(expected).float().expand(40, -1).nan_to_num(7.5))


def cell(gates, state, dtype=torch.float64, forget_gate="sigmoid"):
    """One step of one unit without recurrent weights: h, c, n, m as numbers."""
    x = torch.tensor(gates, dtype=dtype).view(1, 4, 1, 1)
    start = tuple(torch.tensor(s, dtype=dtype).view(1, 1, 1) for s in state)
    h, last = functional.slstm_step(x, x.new_zeros(4, 1, 1, 1), None, start, forget_gate=forget_gate, backend="cpu")
    assert h.dtype == dtype and torch.equal(h.isnan(), last.h.isnan())
    return tuple(s.item() for s in last)


FRESH, RUNNING = (0.0, 0.0, 0.0, 0.0), (0.3, 0.5, 2.0, 1.5)
SIGMOID_2, TANH_1 = 1 / (1 + math.exp(-2.0)), math.tanh(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
class TestLimits:
    def close(self, got, expected, dtype):
        assert got == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-14, abs=0)

    def test_a_fresh_cell_takes_its_input_whatever_the_forget_gate_and_m(self, dtype, forget_gate):
        for f in (-1e4, 0.0, 5.0):
            got = cell((-700.0, f, 1.0, 2.0), (0.9, 0.0, 0.0, 50.0), dtype, forget_gate)
            self.close(got, (SIGMOID_2 * TANH_1, TANH_1, 1.0, -700.0), dtype)

    def test_a_closed_forget_gate_makes_the_cell_fresh_before_its_input(self, dtype, forget_gate):
        got = cell((-3.0, -INF, 1.0, 2.0), RUNNING, dtype, forget_gate)
        self.close(got, (SIGMOID_2 * TANH_1, TANH_1, 1.0, -3.0), dtype)

    def test_both_gates_closed_leave_a_fresh_cell(self, dtype, forget_gate):
        for state in (FRESH, RUNNING):
            assert cell((-INF, -INF, 1.0, 2.0), state, dtype, forget_gate) == (0, 0, 0, 0)

    def test_a_fresh_cell_with_a_closed_input_gate_stays_fresh(self, dtype, forget_gate):
        assert cell((-INF, 1.0, 1.0, 2.0), FRESH, dtype, forget_gate) == (0, 0, 0, 0)

    def test_a_closed_input_gate_keeps_the_state(self, dtype, forget_gate):
        lf = -math.log1p(math.exp(-1.0)) if forget_gate == "sigmoid" else 1.0
        got = cell((-INF, 1.0, 1.0, 2.0), RUNNING, dtype, forget_gate)
        self.close(got, (SIGMOID_2 * 0.25, 0.5, 2.0, 1.5 + lf), dtype)

    @pytest.mark.parametrize("gate", range(4), ids="ifzo")
    def test_nan_in_a_gate_shows_in_h(self, dtype, forget_gate, gate):
        gates = [0.5, 0.5, 0.5, 0.5]
        gates[gate] = NAN
        for state in (FRESH, RUNNING):
            if gate != 1 or state is RUNNING:  # a fresh cell has nothing to forget
                assert math.isnan(cell(gates, state, dtype, forget_gate)[0])


finite_gates = st.floats(-2e4, 2e4) | st.sampled_from([0.0, -0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, 1e-40])
gates = finite_gates | st.just(-INF)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(gates, gates, finite_gates, finite_gates), min_size=1, max_size=12), exp_gate=st.booleans())
def test_cell_keeps_h_within_1_and_n_above_1(steps, exp_gate):
    state = FRESH
    for step in steps:
        state = cell(step, state, torch.float32, "exp" if exp_gate else "sigmoid")
        h, c, n, m = state
        assert abs(h) <= 1 + 2**-20
        assert (n, c, m) == (0, 0, 0) or n >= 1 - 2**-20
        assert math.isfinite(m)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("kept", [True, False], ids=["keeping", "writing"])
def test_cell_gradients_equal_finite_differences(forget_gate, kept):
    """S4 against central differences, one unit: the loss is gauge-free, so it may look at c exp(m) and n exp(m)."""
    torch.manual_seed(3)
    R, b = torch.zeros(4, 1, 1, 1, dtype=torch.float64), None
    x = torch.randn(1, 1, 4, 1, 1, dtype=torch.float64) + torch.tensor([-2.0 if kept else 2.0, 1, 0, 0]).double().view(4, 1, 1)
    state = [torch.randn(1, 1, 1, dtype=torch.float64) for _ in range(4)]
    state[2] = state[2].abs() + 1

    def gauge_free(x, *state):
        h, last = functional.slstm(x, R, b, state=state, return_state=True, forget_gate=forget_gate, backend="cpu")
        return h, last.h, last.c * last.m.exp(), last.n * last.m.exp()

    inputs = [t.requires_grad_() for t in (x, *state)]
    assert torch.autograd.gradcheck(gauge_free, inputs, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("f", [-40.0, -5.0, 0.0, 5.0, 15.0, 40.0, 90.0])
@pytest.mark.parametrize("o", [-40.0, 3.0, 40.0])
def test_cell_gradients_keep_their_precision_when_gates_saturate(f, o):
    """The saved tails: each gradient of a float32 cell is right relative to the terms it is summed from, however small."""
    results = {}
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([0.25, f, 6.0, o], dtype=dtype).view(1, 1, 4, 1, 1).requires_grad_()
        state = tuple(torch.full((1, 1, 1), s, dtype=dtype) for s in RUNNING)
        h = functional.slstm(x, x.new_zeros(4, 1, 1, 1), state=state, backend="cpu")  # the reference loses the tails
        results[dtype] = torch.autograd.grad(h.sum(), x)[0].flatten().tolist()
    opened = 1 / (1 + math.exp(-o))
    forgetting = math.exp(min(f + 1.25, 0)) / (1 + math.exp(f))
    for got, truth, terms in zip(results[torch.float32], results[torch.float64], (opened, opened * forgetting, 0, 0)):
        assert got == pytest.approx(truth, rel=2e-5, abs=5e-7 * terms + 1e-37)
