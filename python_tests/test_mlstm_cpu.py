"""The gates of the chunkwise mLSTM in csrc/cpu: every instruction set, threads, exactness of the weights."""

from __future__ import annotations

import mlstm_cases
import pytest
import tolerances
import torch
from mlstm_cases import Case
from slstm_cases import ISAS

from xlstm_cuda import functional
from xlstm_cuda.native import _C
from xlstm_cuda.ops.chunkwise.gates import scan_gates, weights


@pytest.fixture(params=ISAS)
def isa(request):
    _C.select_cpu_isa(request.param)
    yield request.param
    _C.select_cpu_isa("")


@pytest.mark.parametrize("gates", ["normal", "f-inf every 7th", "f-1e4 every 8th", "both -inf"])
@pytest.mark.parametrize("S", [5, 64, 150])  # one short chunk, a whole one, several
def test_mlstm_on_every_instruction_set_matches_reference(S, gates, isa):
    case = Case(S=S, dtype=torch.float32, gates=gates, state=S == 64, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, "cpu"), mlstm_cases.truth(case, tensors)
    for name, value in got.items():
        assert tolerances.rms_ratio(value, true[name], true.get(f"{name} terms")) <= 5e-5, name


def gates_of(chunks=3, rows=2, L=32, shift=3.0):
    log_i, f = torch.randn(chunks, rows, L).double(), torch.randn(chunks, rows, L).double() + shift
    f[0, 0, 7] = f[1, 1, 0] = -torch.inf
    return scan_gates(log_i, f, torch.randn(rows), "exp")


def test_weights_are_exponentials_to_float32_rounding_and_zero_where_nothing_is_seen(isa):
    for shift in (3.0, -3.0, -40.0):
        gates = gates_of(shift=shift)
        exponent = gates.beta.unsqueeze(-2) - gates.rise.unsqueeze(-1)
        seen = torch.ones(32, 32).tril().bool() & (gates.segment.unsqueeze(-1) == gates.segment.unsqueeze(-2))
        true = exponent.exp() * seen
        got = weights(gates, slice(0, 3))
        assert (got[~seen] == 0).all() and gates.resets
        normal = true > 2.0**-120
        assert ((got.double() - true).abs()[normal] <= 2.0**-22 * true[normal]).all()
        assert (got[~normal & seen] <= 2.0**-119).all()


def test_gates_have_the_same_bits_with_any_number_of_threads():
    results = []
    for threads in (1, 3):
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        try:
            gates = gates_of(chunks=40, rows=64, L=64)
            results.append([*(x for x in gates if isinstance(x, torch.Tensor)), weights(gates, slice(0, 4))])
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("S", [1, 40, 65])
def test_results_are_no_views(S, shape):
    """A view that a custom function returns cannot be changed in place."""
    case = Case(B=shape[0], S=S, NH=shape[1], dtype=torch.float32)
    tensors = mlstm_cases.inputs(case)
    result = mlstm_cases.run(case, tensors, "cpu")
    assert all(x.is_contiguous() and not x._is_view() for x in result.values())
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in result.values())
    h = functional.mlstm(*tensors, backend="cpu")
    h.zero_()
    assert h.grad_fn is not None


def test_a_nan_gate_stays_one():
    log_i, f = torch.zeros(1, 1, 8).double(), torch.zeros(1, 1, 8).double()
    f[0, 0, 3] = torch.nan
    gates = scan_gates(log_i, f, torch.zeros(1), "exp")
    assert gates.m[0, 0, 3:].isnan().all() and gates.m[0, 0, :3].isfinite().all() and gates.m_last.isnan()
