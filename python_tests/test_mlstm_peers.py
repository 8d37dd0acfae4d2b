"""The mLSTM kernels against the pure PyTorch functions of the official package mlstm_kernels, which share no line with ours."""

from __future__ import annotations

import importlib

import pytest
import tolerances
import torch
from backend_fixture import KERNELS, backend_fixture
from mlstm_cases import NAMES, Case, inputs, mlstm

peer = pytest.importorskip("mlstm_kernels.torch", reason="pip install 'xlstm_cuda[peers]'")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


backend = backend_fixture(KERNELS)


def heads_first(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def compare(case: Case, backend: str, official, **options) -> None:
    """`official` takes q, k, v, i, f in float64 as (B, NH, S, ...) and gives h and, or None, the final C, n, m (B, NH, 1)."""
    tensors = inputs(case)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    h, state = mlstm(*tensors, return_state=True, backend=backend, **options)
    h_peer, last = official(*heads_first(doubles))
    h_peer = h_peer.transpose(1, 2)
    assert tolerances.rms_ratio(h, h_peer) <= tolerances.MLSTM_H[case.dtype]
    if last is not None:
        gauge = torch.exp(last[2][..., 0] - state.m.double())
        assert tolerances.rms_ratio(state.C, last[0] * gauge[..., None, None]) <= tolerances.MLSTM_H[case.dtype]
        assert tolerances.rms_ratio(state.n, last[1] * gauge[..., None]) <= 2 * tolerances.MLSTM_H[torch.float32]
    weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(h.dtype)
    expected = torch.autograd.grad((h_peer * weight.double()).sum(), doubles)
    q, k, dq, dk = (x.detach() for x in (*doubles[:2], *expected[:2]))
    df_terms = (q * dq).sum(-1).abs() + (k * dk).sum(-1).abs() + expected[4].abs()
    for name, got, true in zip(NAMES, torch.autograd.grad((h * weight).sum(), tensors), expected):
        allowed = (tolerances.MLSTM_DF if name == "f" else tolerances.MLSTM_GRAD)[case.dtype]
        assert tolerances.rms_ratio(got, true, df_terms if name == "f" else None) <= allowed, f"d{name}"


@DTYPES
@pytest.mark.parametrize("normalizer_grad,kernel", [("exact", "native_autograd"), ("detached", "native_custbw")])
def test_mlstm_equals_mlstm_kernels(normalizer_grad, kernel, dtype, backend):
    """Its custom backward takes the normaliser for a constant. At eps = 0: we count eps at the m of M1, they at their own."""
    run = peer.get_mlstm_kernel(f"chunkwise--{kernel}")
    case = Case(B=2, S=128, NH=2, DHQK=24, DHHV=40, dtype=dtype)
    compare(
        case, backend, lambda *x: run(*x, chunk_size=16, eps=0.0, return_last_states=True),
        eps=0.0, normalizer_grad=normalizer_grad,
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("normalize", [True, False])
def test_mlstm_with_sigmoid_gate_equals_mlstm_kernels(normalize, dtype, backend):
    """Here m = 0 on both sides, so eps means the same."""
    siging = importlib.import_module("mlstm_kernels.torch.parallel.native_siging.fwbw")

    def official(*x):
        h = siging.mlstm_siging_parallel__native_autograd(*x, eps=1e-6, stable_fgate=True, normalize=normalize)
        return h, None

    case = Case(B=2, S=70, NH=2, DHQK=24, DHHV=40, dtype=dtype)
    compare(case, backend, official, igate="sigmoid", normalize=normalize, eps=1e-6)


def test_mlstm_takes_eps_at_the_stabilised_state_of_the_definition(backend):
    """A large eps tells the definitions apart: the official recurrent form has the same m as M1."""
    recurrent = importlib.import_module("mlstm_kernels.torch.recurrent.native_sequence")
    tensors = [x.detach() for x in inputs(Case(B=2, S=40, NH=2, dtype=torch.float32))]
    h_peer = recurrent.mlstm_recurrent_sequence__native_fw(*heads_first([x.double() for x in tensors]), eps=0.1)
    h_peer = h_peer[0] if isinstance(h_peer, tuple) else h_peer
    h = mlstm(*tensors, backend=backend, eps=0.1)
    assert tolerances.rms_ratio(h, h_peer.transpose(1, 2)) <= tolerances.MLSTM_H[torch.float32]
