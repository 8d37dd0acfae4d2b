"""reset of the mLSTM: each stretch between resets is what a separate call on it gives, states, m and gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from backend_fixture import ALL, backend_fixture
from mlstm_cases import Case, device_of, exact_dtype, inputs

from xlstm_cuda import functional, reference

S = 70
RESETS = {
    "none": [[], []],
    "first step": [[0], []],
    "every step": [list(range(S)), [3]],
    "some": [[5, 6, 64, 69], [0, 33]],
}


backend = backend_fixture(ALL)


def flags(rows: list[list[int]]) -> torch.Tensor:
    reset = torch.zeros(len(rows), S, dtype=torch.bool)
    for row, steps in enumerate(rows):
        reset[row, steps] = True
    return reset


def separately(operands, state, rows, **options):
    """h and the final state by one call for every stretch of every row."""
    hs, lasts = [], []
    for row, resets in enumerate(rows):
        last = tuple(part[row : row + 1] for part in state)
        parts, borders = [], [0, *resets, S]
        for index, (start, end) in enumerate(itertools.pairwise(borders)):
            piece = [x[row : row + 1, start:end] for x in operands]
            h, last = functional.mlstm(*piece, state=last if index == 0 else None, return_state=True, **options)
            parts.append(h)
        hs.append(torch.cat(parts, 1))
        lasts.append(last)
    return torch.cat(hs), [torch.cat(parts) for parts in zip(*lasts)]


def loss(h, last):
    weights = torch.linspace(-1, 1, h.numel(), dtype=h.dtype, device=h.device).view_as(h)
    return (h * weights).sum() + last[0].square().sum() + last[1].square().sum()


# Input gates far below log sigmoid(f): there a fresh start and a forget gate of -inf alone count eps and states in other units.
@pytest.mark.parametrize(
    ("gates", "igate"),
    [(gates, "exp") for gates in ("normal", "i-20", "i+20", "i-inf prefix", "f-inf every 7th", "both -inf")]
    + [("normal", "sigmoid")],
)
@pytest.mark.parametrize("name", RESETS)
def test_reset_equals_separate_calls(name, gates, igate, backend):
    case = Case(S=S, state=True, gates=gates, dtype=exact_dtype(backend), DHQK=8, DHHV=8, NH=2)
    tensors = [x.detach().to(device_of(backend)) for x in inputs(case)]
    if gates == "i+20":  # here q.n is the whole normaliser: of one sign, so that float32 has it to its last digits
        tensors[:2] = tensors[0].abs(), tensors[1].abs()
    tensors = [x.requires_grad_() for x in tensors]
    operands, state, options = tensors[:5], tensors[5:], dict(igate=igate, backend=backend)
    reset = flags(RESETS[name]).to(device_of(backend))
    got = functional.mlstm(*operands, state=state, return_state=True, reset=reset, **options)
    expected = separately(operands, state, RESETS[name], **options)
    tolerance = dict(atol=1e-9, rtol=1e-9) if case.dtype == torch.float64 else dict(atol=2e-5, rtol=2e-5)
    for a, b in zip((got[0], *got[1]), (expected[0], *expected[1])):
        torch.testing.assert_close(a, b, **tolerance)
    gradients = [torch.autograd.grad(loss(*pair), tensors) for pair in (got, expected)]
    for what, a, b in zip("q k v i f C0 n0 m0".split(), *gradients):
        scale = b.abs().max().clamp(min=1)  # of float32's sums: df is a difference of two of them
        torch.testing.assert_close(a / scale, b / scale, **tolerance, msg=lambda text, what=what: f"d{what}: {text}")
    assert not gradients[0][4][reset].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reset_in_half_precision(dtype, backend):
    case = Case(S=S, dtype=dtype, NH=2)
    operands = [x.detach().to(device_of(backend)) for x in inputs(case)]
    operands[3] = operands[3] - 9  # far below log sigmoid(f), yet h fits float16
    reset = flags(RESETS["some"]).to(device_of(backend))
    h, (C, n, m) = functional.mlstm(*operands, reset=reset, return_state=True, backend=backend)
    doubles = [x.double() for x in operands]
    truth, (C_, n_, m_) = functional.mlstm(*doubles, reset=reset, return_state=True, backend="reference")
    assert h.dtype == dtype and C.dtype == torch.float32
    scale = torch.exp(m.double() - m_)  # the gauge is free
    for got, expected in ((h, truth), (C * scale[..., None, None], C_), (n * scale[..., None], n_)):
        assert (got.double() - expected).norm() <= 1e-2 * expected.norm()


def test_reset_with_borders_and_strides(backend):
    case = Case(B=1, S=S, state=True, lengths=(0, 20, 1, 49), dtype=exact_dtype(backend), NH=2)
    *operands, C, n, m = (x.detach().to(device_of(backend)) for x in inputs(case))
    cu_seqlens = case.cu_seqlens.to(C.device)
    reset = flags([[20, 21, 40, 50]]).t().contiguous().t().to(C.device)
    options = dict(return_state=True, backend=backend)
    got = functional.mlstm(*operands, state=(C, n, m), cu_seqlens=cu_seqlens, reset=reset, **options)
    pieces = [(0, 20, 1), (20, 21, None), (21, 40, None), (40, 50, None), (50, S, None)]
    results = []
    for start, end, row in pieces:
        before = None if row is None else (C[row : row + 1], n[row : row + 1], m[row : row + 1])
        results.append(functional.mlstm(*(x[:, start:end] for x in operands), state=before, **options))
    tolerance = dict(atol=1e-9, rtol=1e-9) if C.dtype == torch.float64 else dict(atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(got[0], torch.cat([h for h, _ in results], 1), **tolerance)
    expected = [torch.cat([part[:1], *parts]) for part, parts in zip((C, n, m), zip(*(results[i][1] for i in (0, 1, 4))))]
    for a, b in zip(got[1], expected):
        torch.testing.assert_close(a, b, **tolerance)


def test_reset_without_steps_or_rows():
    for B, steps in ((0, 5), (2, 0)):
        case = Case(B=B, S=steps, state=True)
        *operands, C, n, m = inputs(case)
        reset = torch.zeros(B, steps, dtype=torch.bool)
        h, last = functional.mlstm(*operands, state=(C, n, m), reset=reset, return_state=True)
        assert h.shape[:2] == (B, steps)
        torch.testing.assert_close(last.C, C)


def test_reference_forgets_what_was_before_even_nan():
    operands = [x.detach() for x in inputs(Case(B=2, S=S))]
    operands[2][0, 2] = torch.nan
    fresh = [x.new_zeros(shape) for x, shape in zip(operands, ((2, 3, 16, 24), (2, 3, 16), (2, 3)))]
    h, _ = reference.mlstm(*operands, fresh, reset=flags([[5], []]), scale=1.0)
    assert h[0, 2:5].isnan().all() and not h[0, 5:].isnan().any() and not h[1].isnan().any()


@pytest.mark.parametrize(
    ("reset", "error", "words"),
    [
        ([[True]], TypeError, "reset: got list, expected a torch.Tensor"),
        (torch.zeros(2, S), TypeError, "reset: got dtype float32, expected bool"),
        (torch.zeros(S, 2, dtype=torch.bool), ValueError, r"reset: got shape \(70, 2\), expected \(B, S\) = \(2, 70\)"),
        (torch.zeros(2, S, dtype=torch.bool, device="meta"), ValueError, "reset: got a tensor on meta"),
    ],
)
def test_reset_that_does_not_fit_raises(reset, error, words):
    with pytest.raises(error, match=words):
        functional.mlstm(*inputs(Case(S=S)), reset=reset)


def test_reset_is_compiled_and_exported():
    operands = [x.detach() for x in inputs(Case(S=S, dtype=torch.float32))]

    class Op(torch.nn.Module):
        def forward(self, q, k, v, i, f, reset):
            return functional.mlstm(q, k, v, i, f, reset=reset)

    reset = flags(RESETS["some"])
    expected = Op()(*operands, reset)
    compiled = torch.compile(Op(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands, reset), expected)
    exported = torch.export.export(Op(), (*operands, reset)).module()
    torch.testing.assert_close(exported(*operands, ~reset), Op()(*operands, ~reset))
