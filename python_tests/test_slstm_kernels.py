"""The sLSTM recurrence on the kernels of csrc/slstm: backend simt, and cuda where a GPU is. Against the float64 reference."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from backend_fixture import KERNELS, backend_fixture
from slstm_cases import (
    NAMES,
    PACKED_LENGTHS,
    assert_close,
    assert_equals_separate,
    device_of,
    error,
    make_case,
    packed_case,
    rounded,
    run,
    strided,
)

import xlstm_cuda
from xlstm_cuda import functional, simt

INF = float("inf")
HALF = [torch.bfloat16, torch.float16]
DTYPES = [*HALF, torch.float32]


backend = backend_fixture(KERNELS)


def has_shared_memory_for(dtype: torch.dtype, DH: int, backend: str) -> bool:
    """float32 keeps R in shared memory: beyond head dim 64 that is more than sm_86 and sm_89 have."""
    if dtype != torch.float32 or DH <= 64:
        return True
    return DH <= 96 and (backend == "simt" or torch.cuda.get_device_properties(0).shared_memory_per_block_optin >= 200 * 1024)


def check(case, backend: str, dtype: torch.dtype, widest_gate: float = 0.0) -> dict:
    got = run(case, backend, dtype)
    assert_close(got, run(rounded(case, dtype), "reference"), dtype, widest_gate)
    return got


# ---- shapes: every head dim with every dtype; S, B and the options go round

STEPS = itertools.cycle([17, 3, 1, 65, 2, 16, 15])
ROWS = itertools.cycle([3, 8, 1, 17, 9])
GRID = [
    pytest.param(DH, dtype, next(ROWS), next(STEPS), id=f"DH{DH}-{str(dtype)[6:]}")
    for DH, dtype in itertools.product((8, 16, 24, 32, 40, 64, 96, 128), DTYPES)
    if has_shared_memory_for(dtype, DH, "simt")
]


@pytest.mark.parametrize(("DH", "dtype", "B", "S"), GRID)
def test_slstm_equals_the_reference(DH, dtype, B, S, backend):
    if not has_shared_memory_for(dtype, DH, backend):
        pytest.skip(f"float32 at head dim {DH} needs 200 KiB of shared memory")
    if DH >= 96:
        B = min(B, 3)
    case = make_case(B, S, 1 if DH >= 64 else 2, DH, state=S != 3, forget_gate="exp" if S in (2, 16) else "sigmoid")
    if S in (1, 15):
        case.b = None
    case.R *= 0.5  # the tolerances are for a contracting recurrence: chaos has none
    check(case, backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("S", [0, 1, 2, 3, 4, 5, 6, 17, 65])
def test_slstm_of_any_length_equals_the_reference(S, dtype, backend):
    case = make_case(3, S, 2, 24)
    case.R *= 0.5
    check(case, backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("B", [0, 1, 2, 7, 8, 9, 16, 17])
def test_slstm_of_any_batch_equals_the_reference(B, dtype, backend):
    case = make_case(B, 4, 2, 16)
    case.R *= 0.5
    check(case, backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("DH", [1, 5, 9, 23])
def test_slstm_pads_a_head_dim_that_is_no_multiple_of_8(DH, dtype, backend):
    case = make_case(3, 9, 2, DH)
    case.R *= 0.5
    check(case, backend, dtype)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("DH", [8, 32, 48, 56, 64, 72, 88, 96, 104, 112, 120, 128])
def test_slstm_of_every_head_dim_equals_the_reference(DH, dtype, backend):
    if not has_shared_memory_for(dtype, DH, backend):
        pytest.skip(f"the resident kernel does not hold float32 at head dim {DH}")
    for S, B, forget_gate in ((129, 3, "sigmoid"), (31, 17, "exp")):
        case = make_case(B, S, 3, DH, forget_gate=forget_gate)
        case.R *= 0.5
        check(case, backend, dtype)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(200))
def test_slstm_of_random_operands_equals_the_reference(seed, backend):
    choose = random.Random(seed)
    dtype = choose.choice(DTYPES)
    DH, NH = choose.randint(1, 64 if dtype == torch.float32 else 128), choose.randint(1, 3)
    options = {"forget_gate": choose.choice(("sigmoid", "exp"))}
    if choose.random() < 0.4:
        lengths = [choose.choice((0, 1, 2, choose.randint(3, 30))) for _ in range(choose.randint(1, 20))]
        B, S, rows = 1, sum(lengths), len(lengths)
        options["cu_seqlens"] = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    else:
        B, S, rows = choose.randint(1, 20), choose.randint(0, 40), None
        if choose.random() < 0.3:
            options["checkpoint_every"] = choose.randint(1, 20)
    if choose.random() < 0.4:
        options["reset"] = torch.rand(B, S, generator=torch.Generator().manual_seed(seed)) < choose.choice((0.05, 0.5))
    case = make_case(B, S, NH, DH, rows=rows, state=S == 0 or choose.random() < 0.6, seed=seed, **options)
    case.R *= 0.5
    if choose.random() < 0.3:
        case.b = None
    if case.state is not None and choose.random() < 0.3:  # some fresh units
        fresh = torch.rand(case.state[0].shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        for s in case.state:
            s[fresh] = 0
    if choose.random() < 0.3:
        case.x[:, ::3, choose.randint(0, 1)] = choose.choice((-INF, -40.0, 10.0))
    check(case, backend, dtype, widest_gate=40)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_slstm_takes_float32_weights_with_16_bit_inputs(dtype, backend):
    case = make_case(2, 9, 2, 16).on(device_of(backend))
    x, R, b = case.x.to(dtype), case.R.float().requires_grad_(), case.b.float().requires_grad_()
    h = functional.slstm(x, R, b, backend=backend)
    dR, db = torch.autograd.grad(h.sum(), (R, b))
    assert h.dtype == dtype and dR.dtype == db.dtype == torch.float32
    assert torch.equal(h, functional.slstm(x, R.to(dtype), b, backend=backend))
    exact = functional.slstm(x.double(), case.R, case.b, backend="reference")
    assert error(h, exact) < 4e-3


def test_slstm_refuses_float64(backend):
    case = make_case(1, 2, 1, 8).on(device_of(backend))
    with pytest.raises(TypeError, match=f"slstm on {backend}: x: got torch.float64"):
        functional.slstm(case.x, case.R, case.b, backend=backend)


# ---- gates at the limits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("where", ["all", "prefix", "every-third"])
@pytest.mark.parametrize("value", [20.0, 1e4, -1e4, -INF])
@pytest.mark.parametrize("gate", [0, 1], ids=["i", "f"])
def test_slstm_at_extreme_gates(gate, value, where, dtype, backend):
    case = make_case(3, 12, 1, 16, state=where != "prefix")
    case.R *= 0.25
    steps = {"all": slice(None), "prefix": slice(0, 7), "every-third": slice(0, None, 3)}[where]
    case.x[:, steps, gate] = value
    check(case, backend, dtype, widest_gate=0.0 if value == -INF else abs(value))


@pytest.mark.parametrize("value", [20.0, -1e4, -INF])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_slstm_at_extreme_exponential_forget_gates(value, dtype, backend):
    case = make_case(3, 12, 1, 16, forget_gate="exp")
    case.R *= 0.25
    case.x[:, ::2, 1] = value
    check(case, backend, dtype, widest_gate=0.0 if value == -INF else 12 * abs(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_gates_closed_leave_a_fresh_state(dtype, backend):
    case = make_case(2, 5, 2, 8, state=False)
    case.x[:, :, :2] = -INF
    results = run(case, backend, dtype)
    assert all((results[name] == 0).all() for name in ("h", "h_last", "c_last", "n_last", "m_last", "dx", "dR", "db"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_fresh_sample_among_running_ones_is_treated_alone(dtype, backend):
    def some(rows: slice):
        case = make_case(4, 12, 2, 16)
        case.x[:, :, 0] -= 60  # a branch for the whole batch would underflow i'
        for s in case.state:
            s[1] = 0
            s[2, 1, 3:6] = 0  # and some units alone
        case.x, case.dh = case.x[rows], case.dh[rows]
        case.state, case.dstate = tuple(s[rows] for s in case.state), tuple(d[rows] for d in case.dstate)
        return case

    results = check(some(slice(None)), backend, dtype, widest_gate=60)
    only = run(some(slice(1, 2)), backend, dtype)
    assert all(torch.equal(only[name][0], results[name][1]) for name in NAMES if name not in ("dR", "db"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_sample_and_head_from_its_step_on(dtype, backend):
    clean = run(make_case(3, 12, 2, 16), backend, dtype)
    for gate in range(4):
        case = make_case(3, 12, 2, 16)
        case.x[1, 5, gate, 0, 4] = float("nan")
        results = run(case, backend, dtype)
        for name, first in (("h", 5), ("dx", 0)):  # backward carries it to the sample's earlier steps
            value = results[name].unsqueeze(2) if name == "h" else results[name]
            expected = clean[name].unsqueeze(2) if name == "h" else clean[name]
            touched = (value != expected) | value.isnan()
            assert touched[1, first:, :, 0].any()
            touched[1, first:, :, 0] = False
            assert not touched.any(), name
        assert results["h"][1, 6:, 0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_ends_at_a_reset(dtype, backend):
    case = make_case(2, 10, 1, 16)
    case.x[0, 3, 1, 0, 2] = float("nan")
    case.options["reset"] = torch.zeros(2, 10, dtype=torch.bool)
    case.options["reset"][0, 6] = True
    results = run(case, backend, dtype)
    h, dx = results["h"], results["dx"]
    assert h[0, 4:6].isnan().all() and h[0, 6:].isfinite().all() and h[1].isfinite().all()
    assert dx[0, 7:].isfinite().all() and dx[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_does_not_grow_with_the_sequence(dtype, backend):
    errors = {}
    for S in (64, 4096):
        case = make_case(2, S, 1, 16, state=False)
        case.R *= 0.5
        with torch.no_grad():
            on = case.on(device_of(backend))
            h = functional.slstm(on.x.to(dtype), on.R.to(dtype), backend=backend).cpu()
            true = rounded(case, dtype)
            truth = functional.slstm(true.x, true.R, backend="cpu")
        errors[S] = error(h[:, -64:], truth[:, -64:])
    assert errors[4096] <= 2 * max(errors[64], 1e-7), errors


def test_state_is_kept_in_float32(backend):
    """A memory of 1000 steps: a bfloat16 state would stand still, its steps being below its rounding."""
    case = make_case(1, 1000, 1, 8, state=False)
    case.R *= 0
    case.b = None
    case.x[:, :, 0], case.x[:, :, 1] = 0, 30
    with torch.no_grad():
        on = case.on(device_of(backend))
        h, last = functional.slstm(on.x.bfloat16(), on.R.bfloat16(), return_state=True, backend=backend)
        truth, last_ = functional.slstm(case.x, case.R, return_state=True, backend="cpu")
    assert error(last.n.cpu(), last_.n) < 1e-5 and error(last.c.cpu(), last_.c) < 1e-3 and error(h.cpu(), truth) < 4e-3


# ---- resets, packed sequences, states


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_reset_starts_a_sample_afresh(state, dtype, backend):
    case = make_case(9, 23, 2, 16, state=state)
    case.R *= 0.5
    reset = torch.rand(9, 23, generator=torch.Generator().manual_seed(1)) < 0.2
    reset[0], reset[1, 0], reset[2], reset[8, 22] = False, True, True, True
    case.options["reset"] = reset.t().contiguous().t()  # unusual strides
    check(case, backend, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("lengths", PACKED_LENGTHS, ids=str)
def test_cu_seqlens_equals_separate_sequences(lengths, with_reset, dtype, backend):
    case = packed_case(lengths, 16, with_reset)
    case.R *= 0.5
    packed = check(case, backend, dtype)
    assert_equals_separate(packed, case, backend, dtype)


@pytest.mark.parametrize(("B", "S"), [(0, 5), (3, 0), (0, 0)], ids=["B0", "S0", "B0-S0"])
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_nothing_to_do_passes_the_state_through(B, S, state, backend):
    case = make_case(B, S, 2, 8, state=state)
    results = run(case, backend, torch.bfloat16)
    assert results["h"].shape == (B, S, 2, 8) and results["dx"].shape == (B, S, 4, 2, 8)
    assert not results["dR"].any() and not results["db"].any()
    expected = case.to(torch.bfloat16).state or (torch.zeros(B, 2, 8),) * 4
    assert all(torch.equal(results[name], s) for name, s in zip(("h_last", "c_last", "n_last", "m_last"), expected))
    if state:
        assert_close(results, run(case, "reference"), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", ["h", "h_last", "c_last", "n_last"])
def test_gradients_flow_through_some_results_only(wanted, dtype, backend):
    gradients = []
    for name, type_ in ((backend, dtype), ("reference", torch.float64)):
        case = rounded(make_case(2, 7, 2, 16), dtype).to(type_).on(device_of(name))
        leaves = [t.clone().requires_grad_() for t in (case.x, case.R * 0.5, case.b, *case.state)]
        h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend=name)
        result = {"h": h, "h_last": last.h, "c_last": last.c, "n_last": last.n}[wanted]
        incoming = {"h": case.dh}.get(wanted, case.dstate[0])
        gradients.append([g.cpu() for g in torch.autograd.grad(result, leaves, incoming)])
    names = NAMES[5:]
    assert_close(dict(zip(names, gradients[0])), dict(zip(names, gradients[1])), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("border", [1, 7, 19])
def test_a_sequence_in_pieces_equals_the_whole_bitwise(border, dtype, backend):
    """The h that enters a piece is rounded as inside a sequence, so the pieces are the whole."""
    case = make_case(3, 20, 2, 16).to(dtype).on(device_of(backend))
    x, R, b = case.x, case.R, case.b
    whole, end = functional.slstm(x, R, b, state=case.state, return_state=True, backend=backend)
    first, middle = functional.slstm(x[:, :border], R, b, state=case.state, return_state=True, backend=backend)
    second, last = functional.slstm(x[:, border:], R, b, state=middle, return_state=True, backend=backend)
    assert torch.equal(torch.cat((first, second), 1), whole)
    assert all(torch.equal(a, e) for a, e in zip(last, end))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_last_h_is_not_rounded(forget_gate, dtype, backend):
    case = make_case(2, 5, 1, 16).to(dtype).on(device_of(backend))
    h, last = functional.slstm(case.x, case.R, case.b, return_state=True, forget_gate=forget_gate, backend=backend)
    assert last.h.dtype == torch.float32 and torch.equal(last.h.to(dtype), h[:, -1])
    assert dtype == torch.float32 or not torch.equal(last.h, h[:, -1].float())


# ---- checkpoints instead of saved gates


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("every", [1, 5, 7, 100])
def test_checkpoints_give_the_same_gradients(every, dtype, backend):
    case = make_case(3, 20, 2, 16)
    case.R *= 0.5
    case.options["reset"] = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.1
    kept = run(case, backend, dtype)
    case.options["checkpoint_every"] = every
    again = run(case, backend, dtype)
    for name in NAMES:
        if name in ("dR", "db"):
            assert error(again[name], kept[name].double()) < (1e-6 if dtype == torch.float32 else 1e-2)
        else:
            assert torch.equal(again[name], kept[name]), name


def test_checkpoints_save_less(backend):
    case = make_case(2, 64, 2, 16).to(torch.bfloat16).on(device_of(backend))

    def saved_bytes(**options) -> int:
        total = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel() * t.element_size()) or t, lambda t: t):
            functional.slstm(case.x.requires_grad_(), case.R, case.b, backend=backend, **options)
        return sum(total)

    unit_steps, constant = 2 * 64 * 2 * 16, case.R.numel() * 2
    assert saved_bytes() - constant == unit_steps * (8 + 8 + 2)  # tails, cells, h
    b = case.b.numel() * 2
    assert saved_bytes(checkpoint_every=16) - constant - b == unit_steps * 8 + 3 * (2 * 2 * 16) * 16  # x, three states


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_checkpoint_every_must_be_a_number_of_steps(value):
    case = make_case(1, 2, 1, 8)
    with pytest.raises(ValueError, match="checkpoint_every: got"):
        functional.slstm(case.x, case.R, checkpoint_every=value)


def test_checkpoints_do_not_combine_with_cu_seqlens():
    case = make_case(1, 2, 1, 8)
    with pytest.raises(ValueError, match="checkpoint_every: got 4 with cu_seqlens"):
        functional.slstm(case.x, case.R, cu_seqlens=torch.tensor([0, 2], dtype=torch.int32), checkpoint_every=4)


# ---- layouts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["sliced", "permuted", "last-stride-2", "offset"])
@pytest.mark.parametrize("DH", [1, 8, 40])
def test_slstm_does_not_depend_on_the_layout(layout, DH, dtype, backend):
    case = make_case(3, 6, 2, DH)
    plain = run(case, backend, dtype)
    case = case.to(dtype).on(device_of(backend))
    leaves = [strided(t, layout).detach().requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
    h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend=backend)
    incoming = [strided(t, layout) for t in (case.dh, *case.dstate)]
    gradients = torch.autograd.grad((h, *last[:3]), leaves, incoming)
    for name, value in zip(NAMES, (h, *last, *gradients)):
        assert torch.equal(plain[name], value.detach().cpu()), name


def test_slstm_takes_expanded_operands_and_gradients(backend):
    case = make_case(3, 6, 2, 8)
    case.R *= 0.5
    case.x = case.x[:1, :, :, :1].expand(3, 6, 4, 2, 8)
    case.dh = torch.ones((), dtype=torch.float64).expand(3, 6, 2, 8)
    check(case, backend, torch.bfloat16)


# ---- bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("DH", [8, 64])
def test_bits_of_a_row_do_not_depend_on_the_others(DH, dtype, backend):
    def some(rows):
        case = make_case(19, 9, 1, DH)
        case.x, case.dh = case.x[rows], case.dh[rows]
        case.state, case.dstate = tuple(s[rows] for s in case.state), tuple(d[rows] for d in case.dstate)
        return case

    whole = run(some(slice(None)), backend, dtype)
    for rows in ([0], [18], [3, 7], list(range(5, 14))):
        results = run(some(rows), backend, dtype)
        for name in NAMES:
            if name not in ("dR", "db"):
                assert torch.equal(results[name], whole[name][rows]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_backward_passes_give_the_same_gradients(dtype, backend):
    case = make_case(3, 15, 2, 16).to(dtype).on(device_of(backend))
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
    h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend=backend)
    first = torch.autograd.grad((h, *last[:3]), leaves, (case.dh, *case.dstate), retain_graph=True)
    second = torch.autograd.grad((h, *last[:3]), leaves, (case.dh, *case.dstate))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_operands_are_never_written(backend):
    case = make_case(3, 8, 2, 8).to(torch.bfloat16).on(device_of(backend))
    tensors = [case.x, case.R, case.b, *case.state, case.dh, *case.dstate]
    before = [t.clone() for t in tensors]
    run(case, backend, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def traced() -> str:
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    try:
        xlstm_cuda.native.simt("_trace")
    except ImportError as error:
        pytest.skip(str(error))
    return "simt"


def full_case(DH: int):
    """Two tiles of rows of different lengths, with resets: everything that the kernels do."""
    lengths = (9, 0, 6, 1, 9, 2, 7, 9, 3, 5)
    borders = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    case = make_case(1, sum(lengths), 1, DH, rows=len(lengths), cu_seqlens=borders)
    case.options["reset"] = torch.rand(1, sum(lengths), generator=torch.Generator().manual_seed(1)) < 0.2
    return case


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo"])
def test_slstm_has_the_same_bits_with_any_schedule(order, dtype):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    case = full_case(64)
    once = run(case, "simt", dtype)
    with simt.options(order=order, landing="early"):
        again = run(case, "simt", dtype)
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_slstm_has_the_same_bits_with_random_schedules(seed, dtype):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    for DH in (32, 64, 96):
        case = full_case(DH)
        once = run(case, "simt", dtype)
        with simt.options(order="random", seed=seed, landing="random"):
            again = run(case, "simt", dtype)
        assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("order", ["lifo", "random"])
@pytest.mark.parametrize(("DH", "dtype"), [(32, torch.bfloat16), (64, torch.float16), (32, torch.float32)], ids=lambda v: str(v))
def test_slstm_kernels_have_no_data_race(DH, dtype, order):
    backend = traced()
    with simt.options(races=True, order=order):
        run(full_case(DH), backend, dtype)


@pytest.mark.deep
@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo", "random"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("DH", [64, 96, 128])
def test_slstm_kernels_of_every_tile_have_no_data_race(DH, dtype, order):
    backend = traced()
    if not has_shared_memory_for(dtype, DH, backend):
        pytest.skip(f"the resident kernel does not hold float32 at head dim {DH}")
    with simt.options(races=True, order=order):
        run(full_case(DH), backend, dtype)
