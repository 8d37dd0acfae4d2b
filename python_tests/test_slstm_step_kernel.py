"""The decoding kernel of the sLSTM (csrc/slstm/step.cu), on backend simt and on cuda where a GPU is."""

from __future__ import annotations

import pytest
import torch
from backend_fixture import KERNELS, backend_fixture
from slstm_cases import assert_close, device_of, make_case, rounded
from test_slstm_kernels import DTYPES, strided, traced

import xlstm_cuda
from xlstm_cuda import functional, simt

NAMES = ("h", "h_last", "c_last", "n_last", "m_last")


backend = backend_fixture(KERNELS)


def step(case, backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    case = case.to(dtype).on(device_of(backend))
    h, last = functional.slstm_step(case.x[:, 0], case.R, case.b, case.state, backend=backend, **case.options)
    return dict(zip(NAMES, (h.cpu(), *(s.cpu() for s in last))))


def check(case, backend: str, dtype: torch.dtype, widest_gate: float = 0.0) -> None:
    assert_close(step(case, backend, dtype), step(rounded(case, dtype), "reference", torch.float64), dtype, widest_gate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("DH", "B"), [(1, 3), (8, 1), (12, 5), (40, 17), (64, 8), (128, 1), (256, 3), (264, 4), (512, 1), (768, 2), (1024, 1)]
)
def test_slstm_step_equals_the_reference(DH, B, dtype, backend):
    check(make_case(B, 1, 1 if DH > 200 else 3, DH, forget_gate="exp" if DH in (12, 128) else "sigmoid"), backend, dtype)


def test_slstm_step_refuses_a_head_dim_beyond_1024(backend):
    x, R = torch.zeros(1, 4, 1, 1032), torch.zeros(4, 1, 1032, 1032)
    state = (torch.zeros(1, 1, 1032),) * 4
    x, R, *state = (t.to(device_of(backend)) for t in (x, R, *state))
    with pytest.raises(ValueError, match="slstm_step: DH: got 1032, expected a multiple of 8 up to 1024"):
        functional.slstm_step(x, R, None, state, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [1e4, -1e4, -float("inf")])
@pytest.mark.parametrize("gate", [0, 1], ids=["i", "f"])
def test_slstm_step_at_extreme_gates(gate, value, dtype, backend):
    case = make_case(3, 1, 2, 16)
    case.x[:, :, gate] = value
    for s in case.state:
        s[1] = 0  # one fresh row among running ones
    check(case, backend, dtype, widest_gate=0.0 if abs(value) > 1e5 else abs(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slstm_steps_equal_the_sequence(dtype, backend):
    case = make_case(5, 9, 2, 24).to(dtype).on(device_of(backend))
    before = [s.clone() for s in case.state]
    h, last = functional.slstm(case.x, case.R, case.b, state=case.state, return_state=True, backend=backend)
    state, outs = case.state, []
    for t in range(9):
        out, state = functional.slstm_step(case.x[:, t], case.R, case.b, state, backend=backend)
        assert out.dtype == dtype and out.shape == (5, 2, 24)
        outs.append(out)
    got = dict(zip(NAMES, (torch.stack(outs, 1).cpu(), *(s.cpu() for s in state))))
    assert_close(got, dict(zip(NAMES, (h.double().cpu(), *(s.double().cpu() for s in last)))), dtype)
    assert all(torch.equal(a, b) for a, b in zip(case.state, before))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_a_row_do_not_depend_on_the_others(dtype, backend):
    case = make_case(11, 1, 2, 40)
    whole = step(case, backend, dtype)
    for rows in ([0], [10], [3, 7], list(range(2, 9))):
        some = make_case(11, 1, 2, 40)
        some.x, some.state = case.x[rows], tuple(s[rows] for s in case.state)
        results = step(some, backend, dtype)
        assert all(torch.equal(results[name], whole[name][rows]) for name in NAMES)


@pytest.mark.parametrize("layout", ["sliced", "permuted", "last-stride-2", "offset"])
def test_slstm_step_does_not_depend_on_the_layout(layout, backend):
    case = make_case(3, 1, 2, 40).to(torch.bfloat16).on(device_of(backend))
    plain = functional.slstm_step(case.x[:, 0], case.R, case.b, case.state, backend=backend)
    x, R, b, *state = (strided(t, layout) for t in (case.x[:, 0], case.R, case.b, *case.state))
    again = functional.slstm_step(x, R, b, state, backend=backend)
    assert torch.equal(plain[0], again[0]) and all(torch.equal(a, e) for a, e in zip(plain[1], again[1]))


def test_nan_stays_in_its_sample(backend):
    case = make_case(6, 1, 2, 16)
    clean = step(case, backend, torch.bfloat16)
    case.state[0][2, 0, 3] = float("nan")
    dirty = step(case, backend, torch.bfloat16)
    for name in NAMES:
        touched = (dirty[name] != clean[name]) | dirty[name].isnan()
        assert touched[2, 0].any()
        touched[2, 0] = False
        assert not touched.any()


@pytest.mark.parametrize("B", [1, 9])
def test_slstm_step_reads_R_once(B):
    traced()
    case = make_case(B, 1, 2, 256).to(torch.bfloat16)
    with simt.profile() as launches:
        functional.slstm_step(case.x[:, 0], case.R, case.b, case.state, backend="simt")
    (launch,) = launches
    weights = case.R.numel() * 2
    from_R = [line["bytes"] for line in launch["lines"] if line["space"] == "global" and line["bytes"] >= weights / 2]
    assert from_R and from_R[0] == weights
    assert launch["sector_factor"] <= 1.5 if B == 1 else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("DH", [40, 256, 512])
def test_slstm_step_meets_no_bank_twice(DH, dtype):
    traced()
    with simt.profile() as launches:
        step(make_case(4, 1, 1, DH), "simt", dtype)
    assert launches[0]["bank_conflict_factor"] <= 1.05


@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo"])
def test_slstm_step_has_the_same_bits_with_any_schedule(order):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    case = make_case(17, 1, 1, 64)
    once = step(case, "simt", torch.bfloat16)
    with simt.options(order=order):
        again = step(case, "simt", torch.bfloat16)
    assert all(torch.equal(once[name], again[name]) for name in NAMES)


@pytest.mark.parametrize("order", ["lifo", "random"])
def test_slstm_step_has_no_data_race(order):
    traced()
    case = make_case(9, 1, 1, 64)
    with simt.options(races=True, order=order):
        step(case, "simt", torch.bfloat16)
