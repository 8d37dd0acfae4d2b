"""The mLSTM decode-step kernel (csrc/mlstm/step.cu) against the float64 reference; the same tests on simt and on a GPU."""

from __future__ import annotations

import itertools

import pytest
import tolerances
import torch
from backend_fixture import KERNELS, backend_fixture
from simt_backends import skip_unless_traced

from xlstm_cuda import backends, functional, simt

NAMES = ("h", "C", "n", "m")
OPTIONS = [
    {},
    {"normalize": True, "eps": 0.0},
    {"igate": "sigmoid"},
    {"igate": "sigmoid", "normalize": False},
    {"scale": 0.3, "eps": 1e-2},
]
INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


backend = backend_fixture(KERNELS)


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def operands(B=2, NH=3, DHQK=16, DHHV=24, dtype=torch.float32, gate_dtype=None, fresh=False, i=None, f=None, m=None, seed=0):
    """q, k, v, i, f and the state, on the CPU; gates and m can be set to one value."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (normal(B, NH, d).to(dtype) for d in (DHQK, DHQK, DHHV))
    gates = [normal(B, NH), normal(B, NH) + 3]
    state = [normal(B, NH, DHQK, DHHV), normal(B, NH, DHQK), normal(B, NH)]
    for tensor, value in ((gates[0], i), (gates[1], f), (state[2], m)):
        if value is not None:
            tensor.fill_(value)
    if fresh:
        state = [torch.zeros_like(x) for x in state]
    return q, k, v, *(g.to(gate_dtype or dtype) for g in gates), tuple(x.float() for x in state)


def step(tensors, backend, **options):
    """h, C, n, m of the kernel, back on the CPU."""
    *inputs, state = tensors
    device = device_of(backend)
    h, new = functional.mlstm_step(
        *(x.to(device) for x in inputs), tuple(x.to(device) for x in state), backend=backend, **options
    )
    return [x.cpu() for x in (h, *new)]


def truth(tensors, **options):
    *inputs, state = tensors
    h, new = functional.mlstm_step(
        *(x.double() for x in inputs), tuple(x.double() for x in state), backend="reference", **options
    )
    return [h, *new]


def check(tensors, backend, **options):
    got, true = step(tensors, backend, **options), truth(tensors, **options)
    dtype = tensors[0].dtype
    for name, a, b in zip(NAMES, got, true):
        tolerance = tolerances.MLSTM_H[dtype if name == "h" else torch.float32]
        assert a.dtype == (dtype if name == "h" else torch.float32) and a.shape == b.shape
        if name == "m":
            torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)
        else:
            assert tolerances.rms_ratio(a, b) <= tolerance, name
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_step_equals_the_reference(options, dtype, backend):
    check(operands(dtype=dtype), backend, **options)


@pytest.mark.parametrize(
    ("B", "NH", "DHQK", "DHHV"),
    [
        (1, 1, 8, 8),
        (1, 5, 8, 40),
        (3, 1, 72, 8),
        (2, 2, 24, 96),
        (1, 2, 128, 136),
        (1, 1, 512, 8),
        (1, 1, 8, 512),
        (1, 1, 256, 512),
    ],
)
def test_step_at_every_shape(B, NH, DHQK, DHHV, backend):
    check(operands(B, NH, DHQK, DHHV), backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_float32_gates_beside_16_bit_tensors(dtype, backend):
    check(operands(dtype=dtype, gate_dtype=torch.float32), backend)


@pytest.mark.parametrize("m", [-200.0, -88.5, -1.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize(("i", "f"), itertools.product([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4], [-1e4, -100.0, 20.0, 1e4]))
def test_no_gate_overflows(i, f, m, backend):
    got, true = step(operands(B=1, i=i, f=f, m=m), backend), truth(operands(B=1, i=i, f=f, m=m))
    largest = max(abs(i), abs(f), abs(m))
    for name, a, b in zip(NAMES, got, true):
        assert a.isfinite().all(), name
        tolerance = 2.0**-24 * (16 + 2 * largest)
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-37, name


@pytest.mark.parametrize("igate", ["exp", "sigmoid"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "running"])
@pytest.mark.parametrize(("i", "f"), [(-INF, -INF), (0.5, -INF), (-INF, 3.0)])
def test_infinite_gates(i, f, fresh, igate, backend):
    tensors = operands(i=i, f=f, fresh=fresh)
    got = check(tensors, backend, igate=igate)
    if i == -INF and (f == -INF or fresh):
        assert not got[0].any() and not got[1].any() and not got[2].any()
    if i == f == -INF:
        assert not got[3].any()


def test_reset_does_not_read_the_old_state(backend):
    tensors = operands(f=-INF)
    for x in tensors[5]:
        x.fill_(float("nan"))
    assert all(x.isfinite().all() for x in step(tensors, backend))


def test_nan_stays_in_its_sample_and_head(backend):
    for which in range(6):
        tensors = operands()
        clean = step(tensors, backend)
        spoiled = [x.clone() for x in tensors[:5]] + [tuple(x.clone() for x in tensors[5])]
        (spoiled[5][0] if which == 5 else spoiled[which])[1, 2] = float("nan")
        for name, a, b in zip(NAMES, step(spoiled, backend), clean):
            others = torch.ones(2, 3, dtype=torch.bool)
            others[1, 2] = False
            assert torch.equal(a[others], b[others]), (which, name)
            if name == "h":
                assert a[1, 2].isnan().any(), which


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("i", [0.0, 120.0])  # exp(-120) is 0 in float32: at eps = 0 nothing is left of the denominator
def test_zero_query_or_key(i, eps, backend):
    q, k, v, i, f, state = operands(fresh=True, i=i)
    for zeroed in ((torch.zeros_like(q), k), (q, torch.zeros_like(k))):
        assert (step((*zeroed, v, i, f, state), backend, eps=eps)[0] == 0).all()


def test_any_strides(backend):
    q, k, v, i, f, state = operands()
    expected = step((q, k, v, i, f, state), backend)

    def strided(x, unit_last):  # the same numbers in other memory
        wide = torch.empty(x.shape[1], x.shape[0], *x.shape[2:-1], x.shape[-1] * 2 + 3, dtype=x.dtype, device=x.device)
        view = (
            wide.transpose(0, 1)[..., 1 : 1 + x.shape[-1]] if unit_last else wide.transpose(0, 1)[..., 1::2][..., : x.shape[-1]]
        )
        return view.copy_(x)

    device = device_of(backend)
    for unit_last in (True, False):
        inputs = [strided(x.to(device), unit_last) for x in (q, k, v)]
        gates = [x.to(device).t().contiguous().t() for x in (i, f)]
        old = [x.to(device).transpose(0, 1).contiguous().transpose(0, 1) for x in state]
        h, new = functional.mlstm_step(*inputs, *gates, tuple(old), backend=backend)
        for name, a, b in zip(NAMES, (h, *new), expected):
            assert torch.equal(a.cpu(), b), name


def test_gates_shared_by_all_heads(backend):
    q, k, v, i, f, state = operands()
    shared = [x[:, :1].expand(2, 3) for x in (i, f)]
    expected = step((q, k, v, *(x.contiguous() for x in shared), state), backend)
    for a, b in zip(step((q, k, v, *shared, state), backend), expected):
        assert torch.equal(a, b)


def test_the_given_state_stays(backend):
    *inputs, state = operands()
    before = [x.clone() for x in state]
    step((*inputs, state), backend)
    assert all(torch.equal(a, b) for a, b in zip(state, before))


@pytest.mark.parametrize(("DHQK", "DHHV", "name", "got"), [(12, 16, "DHQK", 12), (16, 520, "DHHV", 520), (16, 4, "DHHV", 4)])
def test_unsupported_head_dim_names_it_and_what_is_accepted(DHQK, DHHV, name, got, backend):
    with pytest.raises(ValueError, match=f"{name}: got {got}, expected a multiple of 8 from 8 to 512"):
        step(operands(DHQK=DHQK, DHHV=DHHV), backend)


def test_empty_batch(backend):
    h, C, n, m = step(operands(B=0), backend)
    assert h.shape == (0, 3, 24) and C.shape == (0, 3, 16, 24) and n.shape == (0, 3, 16) and m.shape == (0, 3)


def test_same_input_gives_the_same_bits_alone_or_in_a_batch(backend):
    q, k, v, i, f, state = operands(B=4, DHQK=40, DHHV=72)
    together = step((q, k, v, i, f, state), backend)
    for b in range(4):
        rows = slice(b, b + 1)
        alone = step((q[rows], k[rows], v[rows], i[rows], f[rows], tuple(x[rows] for x in state)), backend)
        assert all(torch.equal(a, t[rows]) for a, t in zip(alone, together))


def test_forty_schedules_give_the_same_bits():
    if not backends()["simt"]:
        pytest.skip(backends()["simt"].reason)
    tensors = operands(DHQK=40, DHHV=72)
    with simt.options(order="fifo"):
        expected = step(tensors, "simt")
    for order, seed in [("reverse", 1), ("lifo", 1)] + [("random", s) for s in range(40)]:
        with simt.options(order=order, seed=seed):
            for name, a, b in zip(NAMES, step(tensors, "simt"), expected):
                assert torch.equal(a, b), (name, order, seed)


def test_no_race_and_the_state_is_moved_once():
    skip_unless_traced()
    B, NH, DHQK, DHHV = 2, 2, 64, 96
    tensors = operands(B, NH, DHQK, DHHV, dtype=torch.bfloat16)
    with simt.options(races=True), simt.profile() as launches:
        step(tensors, "simt")
    (launch,) = launches
    heads, tiles = B * NH, DHHV // 32
    assert launch["kernel"] == "mlstm_step<bfloat16>" and launch["grid"] == (heads * tiles, 1, 1)
    state = heads * DHQK * DHHV * 4
    assert launch["global_bytes_written"] == state + heads * (DHQK + 1) * 4 + heads * DHHV * 2
    per_tile = heads * tiles * (2 * DHQK * 2 + DHQK * 4)  # q, k, n
    v = heads * tiles * 4 * 32 * 2  # each of the 4 warps reads its tile of v
    assert 0 <= launch["global_bytes_read"] - (state + per_tile + v) <= heads * tiles * 4 * 16  # and the gates
    assert launch["bank_conflict_factor"] < 1.2 and launch["sector_factor"] < 1.1
