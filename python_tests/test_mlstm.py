"""functional.mlstm against the float64 reference: outputs, states, every gradient, edges, invariances."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import mlstm_cases
import pytest
import tolerances
import torch
from backend_fixture import KERNELS, NATIVE, backend_fixture
from mlstm_cases import GATES, Case, mlstm

from xlstm_cuda import functional

LENGTHS = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129]
LONG = [191, 257, 1000]
DEEP_ON_SIMT = ["cpu", pytest.param("simt", marks=pytest.mark.deep), "cuda"]


backend = backend_fixture(NATIVE)


def check(case: Case, backend: str, h=tolerances.MLSTM_H, grad=tolerances.MLSTM_GRAD, df=tolerances.MLSTM_DF, **kwargs) -> None:
    case = mlstm_cases.for_backend(case, backend)
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, backend, **kwargs), mlstm_cases.truth(case, tensors, **kwargs)
    for name, value in got.items():
        expected = true[name]
        allowed = {"h": h, "C": h, "n": h, "m": h, "df": df}.get(name, grad)[case.dtype]
        if name in "Cnm" and case.dtype in (torch.bfloat16, torch.float16) and not (name == "C" and backend in KERNELS):
            allowed = (
                h[torch.float32] * 2
            )  # states are float32 whatever the inputs; tensor cores round w v to 16 bits on its way into C
        error = tolerances.rms_ratio(value, expected, true["df terms"] if name == "df" else None)
        if value.dtype != torch.float64 and bool(((value.double() - expected.double()).abs() <= 1e-37).all()):
            continue  # below the normal numbers of float32
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


def check_bound(case: Case, backend: str) -> None:
    """Every number of h, for any input from a fresh state."""
    tensors = mlstm_cases.inputs(case)
    q, k, v, i, f = tensors
    got = mlstm(q, k, v, i, f, backend=backend).detach().double()
    true = functional.mlstm(*(x.detach().double() for x in tensors), backend="reference")
    bound = tolerances.mlstm_forward_bound(q, k, v, i, f, case.DHQK**-0.5, case.dtype)
    excess = ((got - true).abs() / bound).max()
    assert excess <= 1, f"{excess:.2f} times the bound"


@pytest.mark.parametrize("S", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_matches_reference_for_any_length(S, dtype, backend):
    check(Case(S=S, NH=2, dtype=dtype, state=True, options={"eps": 0.0}), backend)


@pytest.mark.parametrize("S", LONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", DEEP_ON_SIMT, indirect=True)
def test_mlstm_matches_reference_for_long_sequences(S, dtype, backend):
    check(Case(S=S, dtype=dtype, state=True, options={"eps": 0.0}), backend)


@pytest.mark.parametrize("DHQK,DHHV", [(8, 8), (8, 24), (24, 8), (40, 72), (72, 40), (96, 64), (1, 5), (128, 64)])
@pytest.mark.parametrize("B,NH", [(1, 1), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_matches_reference_for_any_head_dim(B, NH, DHQK, DHHV, dtype, backend):
    case = Case(B=B, NH=NH, DHQK=DHQK, DHHV=DHHV, dtype=dtype)
    if min(DHQK, DHHV) < 8 and dtype == torch.bfloat16:  # q.n of one product is often near the floor: not conditioned
        check_bound(case, backend)
    else:
        check(case, backend)


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": 0.0},
        {"scale": 0.3},
        {"normalizer_grad": "detached"},
        {"igate": "sigmoid"},
        {"igate": "sigmoid", "normalize": False},
        {"chunk_size": 16},
        {"chunk_size": 256},
    ],
    ids=str,
)
def test_mlstm_options_match_reference(options, state, backend):
    # At eps > 0 the formulas of df and dm0 neglect d eps / d gauge, of the size of eps (csrc/mlstm/README.md).
    loose = {torch.float64: 1e-5 if options.get("eps", 1e-6) else 1e-11, torch.float32: 2e-5}
    check(Case(S=100 if backend in KERNELS else 150, state=state, options=options), backend, grad=loose, df=loose)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_mlstm_gate_edges_match_reference(gates, state, backend):
    # An exponent of size |gate| costs that many ulps: 1e4 * 2^-52 in float64; in float32 it is m that is rounded. Far above the
    # floor (i + 20, i + 100) nothing but q.n itself bounds |d| from below, and what cancels in it enlarges float32's rounding
    # (1431 times here) twice, in the sum and in the quotient, whatever the order of the sums, fused or not.
    case = Case(S=70, NH=2, gates=gates, state=state, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    conditioning = tolerances.mlstm_conditioning(tensors, case.DHQK**-0.5, mlstm_cases.truth(case, tensors)["dq"])
    roundings = 2**-24 * (mlstm_cases.largest_gate(tensors) + 2 * conditioning)

    def allowed(conditioned: dict[torch.dtype, float]) -> dict[torch.dtype, float]:
        return {torch.float64: 1e-9, torch.float32: conditioned[torch.float32] + roundings}

    h, grad, df = map(allowed, (tolerances.MLSTM_H, tolerances.MLSTM_GRAD, tolerances.MLSTM_DF))
    check(case, backend, h=h, grad=grad, df=df)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_forward_stays_within_the_componentwise_bound(gates, dtype, backend):
    check_bound(Case(S=130, NH=2, dtype=dtype, gates=gates), backend)


@pytest.mark.parametrize("zeroed", ["q", "k"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_mlstm_zero_query_or_key_gives_zero(zeroed, eps, backend):
    case = Case(S=20, gates="i+100", dtype=mlstm_cases.exact_dtype(backend), options={"eps": eps})
    if backend in KERNELS:  # the gradient of q = 0 has the size of exp(100), more than float32 holds
        tensors = [x.detach() for x in mlstm_cases.inputs(case)]
        tensors["qk".index(zeroed)].zero_()
        assert (mlstm(*tensors, backend=backend, eps=eps) == 0).all()
        case = dataclasses.replace(case, gates="i+20")
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors["qk".index(zeroed)].zero_()
    result = mlstm_cases.run(case, tensors, backend, loss_on_state=False)
    assert (result["h"] == 0).all()
    assert all(g.isfinite().all() for g in result.values())


def test_mlstm_closed_gates_leave_a_fresh_state_fresh(backend):
    q, k, v, i, _ = (x.detach() for x in mlstm_cases.inputs(Case(S=7, dtype=mlstm_cases.exact_dtype(backend))))
    closed = torch.full_like(i, -torch.inf)
    h, state = mlstm_cases.mlstm(q, k, v, closed, closed, return_state=True, backend=backend)
    assert all((x == 0).all() for x in (h, *state))


@pytest.mark.parametrize("lengths", [(65,), (1, 64, 0, 3, 130), (0, 0, 5), (0,), (17, 17, 17)], ids=str)
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_mlstm_cu_seqlens_equals_each_sequence_alone(lengths, state, backend):
    check(Case(B=1, S=sum(lengths), lengths=lengths, state=state, options={"eps": 0.0}), backend)


@pytest.mark.parametrize("B,S", [(2, 0), (0, 5), (0, 0)])
def test_mlstm_of_nothing_passes_the_state_through(B, S, backend):
    case = Case(B=B, S=S, dtype=mlstm_cases.exact_dtype(backend), state=True)
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, backend), mlstm_cases.truth(case, tensors)
    assert got["h"].shape == (B, S, case.NH, case.DHHV)
    for name, start in zip("Cnm", tensors[5:]):
        assert torch.equal(got[name], start)
    for name in got:
        if name == "dm0" and backend in KERNELS:  # a dot product in float32
            assert tolerances.rms_ratio(got[name], true[name]) < 1e-6
        else:
            assert torch.equal(got[name], true[name].to(got[name].dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_split_at_a_chunk_border_gives_the_same_bits(dtype, backend):
    if dtype == torch.bfloat16 and backend not in KERNELS:
        pytest.skip("bfloat16 is computed in float32 there")
    q, k, v, i, f = (x.detach() for x in mlstm_cases.inputs(Case(S=200, NH=2, dtype=dtype)))
    whole, last = mlstm(q, k, v, i, f, return_state=True, chunk_size=64, backend=backend)
    pieces, state = [], None
    for piece in (slice(0, 128), slice(128, 200)):
        h, state = mlstm(*(x[:, piece] for x in (q, k, v, i, f)), state=state, return_state=True, chunk_size=64, backend=backend)
        pieces.append(h)
    assert torch.equal(torch.cat(pieces, 1), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, last))


def test_mlstm_pieces_have_the_gradients_of_the_whole(backend):
    tensors = mlstm_cases.inputs(Case(S=100, NH=2, dtype=mlstm_cases.exact_dtype(backend), state=True))
    sequence, start = tensors[:5], tensors[5:]

    def loss(borders: list[int]) -> torch.Tensor:
        state, outputs = tuple(start), []
        for a, b in itertools.pairwise(borders):
            h, state = mlstm(*(x[:, a:b] for x in sequence), state=state, return_state=True, eps=0.0, backend=backend)
            outputs.append(h)
        return torch.cat(outputs, 1).sin().sum()

    whole = torch.autograd.grad(loss([0, 100]), tensors)
    pieces = torch.autograd.grad(loss([0, 30, 31, 64, 100]), tensors)
    for name, a, b in zip(mlstm_cases.NAMES, pieces, whole):
        assert tolerances.rms_ratio(a, b) <= (1e-5 if backend in KERNELS else 1e-12), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_row_does_not_depend_on_its_batch(dtype, backend):
    if dtype == torch.bfloat16 and backend not in KERNELS:
        pytest.skip("bfloat16 is computed in float32 there")
    case = Case(B=4, S=130 if backend not in KERNELS else 70, NH=2, dtype=dtype)
    tensors = mlstm_cases.inputs(case)
    whole = mlstm_cases.run(case, tensors, backend, loss_on_state=False)
    row = [x.detach()[2:3].clone().requires_grad_() for x in tensors]
    h = mlstm(*row, backend=backend)
    assert torch.equal(h, whole["h"][2:3])
    generator = torch.Generator().manual_seed(case.seed + 1)
    weight = torch.randn(whole["h"].shape, generator=generator, dtype=torch.float64).to(h.dtype)
    for name, gradient in zip(mlstm_cases.NAMES, torch.autograd.grad((h * weight[2:3]).sum(), row)):
        assert torch.equal(gradient, whole["d" + name][2:3]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_gives_the_same_bits_twice(dtype, backend):
    case = Case(S=130 if backend not in KERNELS else 70, NH=2, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    once, twice = (mlstm_cases.run(case, tensors, backend) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_mlstm_two_backward_passes_agree_and_inputs_stay(backend):
    tensors = mlstm_cases.inputs(Case(S=70, dtype=torch.float32, state=True))
    before = [x.detach().clone() for x in tensors]
    h, state = mlstm(*tensors[:5], state=tuple(tensors[5:]), return_state=True, backend=backend)
    loss = h.square().sum() + state.C.square().sum()
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    second = torch.autograd.grad(loss, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "offset", "last axis strided"])
def test_mlstm_reads_any_strides(layout, backend):
    case = Case(S=33, DHQK=16, DHHV=16, dtype=mlstm_cases.exact_dtype(backend))
    q, k, v, i, f = (x.detach().to(mlstm_cases.device_of(backend)) for x in mlstm_cases.inputs(case))
    expected = mlstm(q, k, v, i, f, backend=backend)
    if layout == "expanded":
        q = q[:1].expand(2, -1, -1, -1)
        expected = mlstm(q.contiguous(), k, v, i, f, backend=backend)
    views = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "expanded": lambda x: x,
        "offset": lambda x: torch.cat([x[:, :3], x], 1)[:, 3:],
        "last axis strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    }
    view = views[layout]
    got = mlstm(view(q), view(k), view(v), view(i), view(f), backend=backend)
    assert torch.equal(got, expected)


def test_mlstm_reads_any_strides_of_the_incoming_gradient(backend):
    device = mlstm_cases.device_of(backend)
    inputs = mlstm_cases.inputs(Case(S=33, dtype=mlstm_cases.exact_dtype(backend)))
    tensors = [x.detach().to(device).requires_grad_() for x in inputs]
    h = functional.mlstm(*tensors, backend=backend)
    weight = torch.randn(*h.shape[:-1], 1, dtype=h.dtype, device=device)
    expanded = torch.autograd.grad(h, tensors, weight.expand_as(h), retain_graph=True)
    contiguous = torch.autograd.grad(h, tensors, weight.expand_as(h).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(expanded, contiguous))


@pytest.mark.parametrize("poisoned", ["q", "k", "v", "i", "f"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mlstm_nan_touches_only_its_sample_and_head_from_its_step_on(poisoned, value, dtype, backend):
    if dtype != torch.float32 and backend not in KERNELS:
        pytest.skip("16-bit dtypes are computed in float32 there")
    if value == torch.inf and poisoned in "qf":
        pytest.skip("q = inf stays at its step; f = +inf is a gate that forgets nothing")
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=3, S=100, dtype=dtype))]
    clean, clean_state = mlstm(*tensors, return_state=True, backend=backend)
    tensors["qkvif".index(poisoned)][1, 70, 2] = value
    h, state = mlstm(*tensors, return_state=True, backend=backend)
    touched = torch.zeros(h.shape, dtype=torch.bool)
    touched[1, 70:, 2] = True
    assert torch.equal(h[~touched], clean[~touched])
    # An infinite v or k may stay infinite in the kernels; NaN stays NaN.
    lost = torch.isnan if value != value or backend not in KERNELS else lambda x: ~x.isfinite()
    assert lost(h[1, 70, 2]).all(), "a NaN is hidden"
    if poisoned != "q":
        assert lost(h[1, 70:, 2]).all() and lost(state.C[1, 2]).all()
        assert poisoned == "v" or lost(state.n[1, 2]).all()
    others = torch.ones(3, 3, dtype=torch.bool)
    others[1, 2] = False
    assert all(torch.equal(a[others], b[others]) for a, b in zip(state, clean_state))


def test_mlstm_never_writes_to_its_inputs_when_it_cleans_them(backend):
    # One row, a whole number of chunks, the compute dtype: cutting into chunks copies nothing.
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, NH=1, S=128, dtype=torch.float32))]
    tensors[1][0, 3] = torch.nan
    before = [x.clone() for x in tensors]
    mlstm(*tensors, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors) if not b.isnan().any())
    assert tensors[1][0, 3].isnan().all()


@pytest.mark.parametrize("backend", DEEP_ON_SIMT, indirect=True)
def test_mlstm_error_does_not_grow_with_length(backend):
    errors = {}
    for S in (256, 4096):
        tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=S, NH=1, dtype=torch.float32))]
        true = functional.mlstm(*(x.double() for x in tensors), backend="reference")
        errors[S] = tolerances.rms_ratio(mlstm(*tensors, backend=backend), true)
    assert errors[4096] <= 1.5 * errors[256], errors


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_mlstm_memory_is_linear_in_length():
    """From one length to the next the memory grows as the steps do; the scores of the parallel form alone would be 107 GB here.

    Differences, because memory that the first call has left resident is not counted at any length. They are more than 90 MiB, of
    which the 4 MiB that a thread may keep for its next task are less than what is allowed.
    """
    script = """
import sys, torch
from pathlib import Path
from xlstm_cuda import functional
S = int(sys.argv[1])
torch.set_num_threads(1)
x = [torch.randn(1, S, 4, *d, requires_grad=True) for d in ((32,), (32,), (32,), (), ())]
functional.mlstm(*(t[:, :64] for t in x)).sum().backward()
read = lambda name: next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
functional.mlstm(*x).sum().backward()
print(read("VmHWM") - before)
"""

    def kibibytes(S: int) -> int:
        command = [sys.executable, "-c", script, str(S)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    short, middle, long = (kibibytes(S) for S in (8192, 40960, 81920))
    assert 0 < long - middle <= 1.05 * 1.25 * (middle - short)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("gate_dtype", ["same", "float32"])
def test_mlstm_dtypes_in_and_out(dtype, gate_dtype, backend):
    if dtype == torch.float64 and backend in KERNELS:
        with pytest.raises(TypeError, match=f"mlstm on {backend}: q: got torch.float64, expected torch.float32"):
            mlstm(*(x.detach() for x in mlstm_cases.inputs(Case(S=9))), backend=backend)
        return
    q, k, v, i, f = (x.detach().to(dtype) for x in mlstm_cases.inputs(Case(S=9)))
    if gate_dtype == "float32" and dtype != torch.float64:
        i, f = i.float(), f.float()
    tensors = [x.requires_grad_() for x in (q, k, v, i, f)]
    h, state = mlstm(*tensors, return_state=True, backend=backend)
    assert h.dtype == dtype
    assert {x.dtype for x in state} == {torch.float64 if dtype == torch.float64 else torch.float32}
    h.float().sum().backward()
    assert all(x.grad.dtype == x.dtype for x in tensors)


@pytest.mark.parametrize("options", [{}, {"igate": "sigmoid"}, {"igate": "sigmoid", "normalize": False}, {"scale": 2.0}], ids=str)
@pytest.mark.parametrize("gates", ["normal", "f-inf every 7th", "both -inf"])
def test_mlstm_step_walks_like_the_sequence(options, gates, backend):
    if backend == "cuda":
        pytest.skip("test_mlstm_step_kernel.py does it there")
    case = Case(S=20, dtype=torch.float32, gates=gates, state=True)
    q, k, v, i, f, *start = (x.detach() for x in mlstm_cases.inputs(case))
    expected, last = functional.mlstm(q, k, v, i, f, state=start, return_state=True, backend="reference", **options)
    state, outputs = tuple(start), []
    for t in range(case.S):
        before = [x.clone() for x in state]
        h, new = functional.mlstm_step(q[:, t], k[:, t], v[:, t], i[:, t], f[:, t], state, backend=backend, **options)
        assert all(torch.equal(a, b) for a, b in zip(before, state)), "the given state changed"
        state = new
        outputs.append(h)
    assert tolerances.rms_ratio(torch.stack(outputs, 1), expected) <= tolerances.MLSTM_H[torch.float32]
    for a, b in zip(state, last):
        assert tolerances.rms_ratio(a, b) <= tolerances.MLSTM_H[torch.float32]


def test_mlstm_step_has_gradients(backend):
    if backend == "cuda":
        pytest.skip("test_mlstm_step_kernel.py does it there")
    case = Case(S=1, dtype=mlstm_cases.exact_dtype(backend), state=True, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    true = mlstm_cases.truth(case, tensors, loss_on_state=False)
    h, _ = functional.mlstm_step(*(x[:, 0] for x in tensors[:5]), tuple(tensors[5:]), eps=0.0, backend=backend)
    weight = torch.randn(true["h"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, gradient in zip(mlstm_cases.NAMES, torch.autograd.grad((h.unsqueeze(1) * weight).sum(), tensors)):
        assert (
            tolerances.rms_ratio(gradient, true["d" + name], true["df terms"] if name == "f" else None)
            <= tolerances.MLSTM_GRAD[case.dtype]
        ), name
