"""Where the quotient of h (M3) has no value: the limits table of csrc/mlstm/README.md, on every backend, gradients included."""

from __future__ import annotations

import math

import mlstm_cases
import pytest
import tolerances
import torch
from backend_fixture import ALL, KERNELS, backend_fixture
from mlstm_cases import Case, mlstm

import xlstm_cuda

OUTPUTS = ("h", "C", "n", "m")


backend = backend_fixture(ALL)


def case_of(S: int, level: float, **fields) -> tuple[Case, list[torch.Tensor]]:
    """A float32 case with eps = 0 whose input gates lie around ``level``, so that m does too."""
    case = Case(S=S, NH=2, dtype=torch.float32, options={"eps": 0.0}, **fields)
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[0].abs_()
        tensors[1].abs_()  # q.n far from 0, so that the quotient is well conditioned
        tensors[3] += level
    return case, tensors


def assert_matches(got: dict[str, torch.Tensor], true: dict[str, torch.Tensor], level: float) -> None:
    allowed = 2e-5 + 2.0**-24 * 8 * level  # m is rounded
    for name, value in got.items():
        assert value.isfinite().all(), f"{name} is not finite"
        error = tolerances.rms_ratio(value, true[name], true.get(f"{name} terms"))
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("level", [85.0, 95.0, 110.0, 1e4], ids=str)
@pytest.mark.parametrize("lengths", [None, (3, 0, 70, 1)], ids=["batch", "cu_seqlens"])
def test_mlstm_padded_rows_are_harmless_at_any_m(lengths, level, backend):
    case, tensors = case_of(74, level, B=1 if lengths else 2, lengths=lengths)
    assert_matches(mlstm_cases.run(case, tensors, backend), mlstm_cases.truth(case, tensors), level)


@pytest.mark.parametrize("level", [20.0, 95.0, 110.0, 1e4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_query_of_zero_reads_zero_and_takes_no_gradient_where_it_has_none(level, dtype, backend):
    """True dq of that step is exp(m) C dh: beyond float32 it is 0. Every other gradient is what it is."""
    case, tensors = case_of(40, level)
    dead = level > 88
    with torch.no_grad():
        tensors[0][:, 17] = 0
        tensors[0][:, 39] = 0
    tensors = [x.detach().to(dtype).requires_grad_() for x in tensors]
    got, true = mlstm_cases.run(case, tensors, backend), mlstm_cases.truth(case, tensors)
    assert (got["h"][:, 17] == 0).all() and (got["h"][:, 39] == 0).all()
    if dead:
        for step in (17, 39):
            assert (got["dq"][:, step] == 0).all()
            true["dq"][:, step] = 0
    if dtype == torch.float32:
        assert_matches(got, true, level)
    assert all(x.isfinite().all() for x in got.values())


@pytest.mark.parametrize("level", [95.0, 110.0])
def test_mlstm_loss_on_the_state_alone_has_gradients_where_h_has_no_value(level, backend):
    _, tensors = case_of(20, level)
    with torch.no_grad():
        tensors[0].zero_()
    q, k, v, i, f = tensors
    _, state = mlstm(q, k, v, i, f, eps=0.0, return_state=True, backend=backend)
    grads = torch.autograd.grad(state.C.sum() + state.n.sum(), tensors, materialize_grads=True)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    _, state = mlstm(*doubles, eps=0.0, return_state=True, backend="reference")
    true = torch.autograd.grad(state.C.sum() + state.n.sum(), doubles, materialize_grads=True)
    assert (grads[0] == 0).all()
    for name, x, y in zip("kvif", grads[1:], true[1:]):
        assert tolerances.rms_ratio(x, y) <= 5e-5, name


@pytest.mark.parametrize("level", [60.0, 80.0, 100.0, 120.0])
def test_mlstm_key_of_zero_hides_the_state_once_it_is_below_the_normal_numbers(level, backend):
    """One step with k = 0: n and C only decay, by exp(-i). While they are normal numbers h is right; then it is 0."""
    case = Case(S=1, NH=2, dtype=torch.float32, state=True, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[1].zero_()
        tensors[3].fill_(level)
        tensors[7].zero_()
    got, true = (
        mlstm_cases.run(case, tensors, backend, loss_on_state=False),
        mlstm_cases.truth(case, tensors, loss_on_state=False),
    )
    if level > 90:
        assert (got["h"] == 0).all()
        assert all((got[f"d{name}"] == 0).all() for name in ("q", "k", "v", "i", "f", "C0", "n0", "m0"))
        return
    for name in ("h", "dq", "dC0", "dn0", "dv"):  # dk is exp(i)
        assert got[name].isfinite().all() and tolerances.rms_ratio(got[name], true[name]) <= 1e-4, name


def test_mlstm_step_without_a_value_is_zero_and_keeps_a_nan(backend):
    case = Case(S=1, NH=2, dtype=torch.float32, state=True)
    q, k, v, i, f, *state = (x.detach() for x in mlstm_cases.inputs(case))
    q.zero_()
    v[0, 0, 0, 3] = torch.nan
    device = mlstm_cases.device_of(backend)
    for level in (95.0, 110.0):
        step = [x[:, 0].to(device) for x in (q, k, v, torch.full_like(i, level), f)]
        h, _ = xlstm_cuda.functional.mlstm_step(*step, [x.to(device) for x in state], eps=0.0, backend=backend)
        whole = mlstm(q, k, v, torch.full_like(i, level), f, state=state, eps=0.0, backend=backend)
        assert h[0, 0, 3].isnan() and (h[1] == 0).all() and (h[0, 1] == 0).all()
        assert whole[0, 0, 0, 3].isnan() and (whole[1] == 0).all() and (whole[0, 0, 1] == 0).all()


@pytest.mark.parametrize("level", [100.0, 750.0])
def test_mlstm_in_float64_reads_zero_only_where_float64_ends(level, backend):
    if backend in KERNELS:
        pytest.skip("the kernels take no float64")
    case = Case(S=20, NH=2, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[0][:, 7] = 0
        tensors[3] += level
    got = mlstm_cases.run(case, tensors, backend)
    assert (got["h"][:, 7] == 0).all() and all(x.isfinite().all() for x in got.values())
    size = got["dq"][:, 7].abs().amax()
    assert size == 0 if level > 710 else math.log(size) > 90
