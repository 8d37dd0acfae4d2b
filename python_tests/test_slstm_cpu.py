"""The sLSTM recurrence on backend cpu, forward and backward, against the float64 reference and independent implementations."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from isa_fixture import ISAS, isa_fixture
from slstm_cases import (
    NAMES,
    PACKED_LENGTHS,
    assert_close,
    assert_equals_separate,
    assert_same_gradients,
    error,
    make_case,
    official_vanilla,
    packed_case,
    run,
    strided,
)

from xlstm_cuda import functional
from xlstm_cuda.native import _C

INF = float("inf")
STEPS = (1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129)
SHAPES = itertools.cycle([(2, 3, 8), (1, 1, 24), (3, 2, 40), (9, 1, 1), (5, 3, 5), (1, 5, 72), (11, 1, 17), (2, 1, 96)])
GRID = [
    pytest.param(S, *next(SHAPES), dtypes, id=f"S{S}-{'-'.join(str(d)[6:] for d in dtypes)}")
    for S, dtypes in itertools.product(STEPS, ((torch.float32, torch.bfloat16), (torch.float32, torch.float64)))
]
isa = isa_fixture()


def each_isa():
    """For tests whose truth is costly: every instruction set of this CPU within one test."""
    for name in _C.cpu_isas():
        _C.select_cpu_isa(name)
        yield name
    _C.select_cpu_isa("")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("S", "B", "NH", "DH", "dtypes"), GRID)
def test_slstm_equals_the_reference(S, B, NH, DH, dtypes):
    case = make_case(B, S, NH, DH, state=dtypes[1] == torch.bfloat16, forget_gate="exp" if S in (2, 16, 65) else "sigmoid")
    if S in (3, 64):
        case.b = None
    case.R *= 0.5  # the tolerances are for a contracting recurrence: chaos has none
    truth = run(case, "reference")
    for _, dtype in itertools.product(each_isa(), dtypes):
        assert_close(run(case, "cpu", dtype), truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_slstm_takes_float32_weights_with_half_precision_inputs(dtype, isa):
    case = make_case(2, 9, 2, 12)
    x, R, b = case.x.to(dtype), case.R.float().requires_grad_(), case.b.float().requires_grad_()
    h = functional.slstm(x, R, b, backend="cpu")
    dR, db = torch.autograd.grad(h.sum(), (R, b))
    assert h.dtype == dtype and dR.dtype == db.dtype == torch.float32
    exact = functional.slstm(x.double(), case.R, case.b, backend="reference")
    assert torch.equal(h, functional.slstm(x.float(), R, b, backend="cpu").to(dtype))
    assert error(h, exact) < 4e-3


# ---- gates at the limits


def with_gate(value: float, gate: int, where: str):
    case = make_case(3, 12, 2, 9, state=where != "prefix")
    case.R *= 0.25
    steps = {"all": slice(None), "prefix": slice(0, 7), "token": slice(8, 9), "every-third": slice(0, None, 3)}[where]
    case.x[:, steps, gate] = value
    return case


@pytest.mark.parametrize("where", ["all", "prefix", "token", "every-third"])
@pytest.mark.parametrize("value", [20.0, -20.0, 100.0, -100.0, 1e4, -1e4, -INF])
@pytest.mark.parametrize("gate", [0, 1], ids=["i", "f"])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_at_extreme_gates(gate, value, where, forget_gate):
    case = with_gate(value, gate, where)
    case.options["forget_gate"] = forget_gate
    # exp forget gates add up in m
    widest = 0.0 if value == -INF else abs(value) * (12 if forget_gate == "exp" and gate == 1 and value > 0 else 1)
    truth = run(case, "reference")
    for _, dtype in itertools.product(each_isa(), (torch.float32, torch.float64)):
        assert_close(run(case, "cpu", dtype), truth, dtype, widest)


def test_both_gates_closed_leave_a_fresh_state():
    case = make_case(2, 5, 2, 7, state=False)
    case.x[:, :, :2] = -INF
    results = run(case, "cpu", torch.float32)
    assert all((results[name] == 0).all() for name in ("h", "h_last", "c_last", "n_last", "m_last", "dx", "dR", "db"))


def test_one_fresh_sample_among_running_ones_is_treated_alone():
    case = make_case(4, 12, 2, 9)
    case.x[:, :, 0] -= 60  # a branch for the whole batch would underflow i'
    for s in case.state:
        s[1] = 0
        s[2, 1, 3:6] = 0
    results = run(case, "cpu", torch.float32)
    assert_close(results, run(case, "reference"), torch.float32, widest_gate=60)
    alone = make_case(4, 12, 2, 9)
    alone.x, alone.dh = case.x[1:2], case.dh[1:2]
    alone.state, alone.dstate = tuple(s[1:2] for s in case.state), tuple(d[1:2] for d in case.dstate)
    only = run(alone, "cpu", torch.float32)
    assert all(torch.equal(only[name][0], results[name][1]) for name in NAMES if name not in ("dR", "db"))


def test_nan_stays_in_its_sample_and_head_from_its_step_on():
    case = make_case(3, 12, 2, 9)
    clean = run(case, "cpu", torch.float32)
    for gate in range(4):
        poisoned = make_case(3, 12, 2, 9)
        poisoned.x[1, 5, gate, 0, 4] = float("nan")
        h = run(poisoned, "cpu", torch.float32)["h"]
        touched = (h != clean["h"]) | h.isnan()
        assert touched[1, 5:, 0].any() and h[1, 6:, 0].isnan().all()
        touched[1, 5:, 0] = False
        assert not touched.any()


def test_nan_ends_at_a_reset():
    case = make_case(2, 10, 1, 5)
    case.x[0, 3, 1, 0, 2] = float("nan")
    case.options["reset"] = torch.zeros(2, 10, dtype=torch.bool)
    case.options["reset"][0, 6] = True
    h = run(case, "cpu", torch.float32)["h"]
    assert h[0, 4:6].isnan().all() and h[0, 6:].isfinite().all() and h[1].isfinite().all()


@pytest.mark.parametrize("long_memory", [False, True], ids=["", "long-memory"])
def test_error_does_not_grow_with_the_sequence(long_memory, isa):
    errors = {}
    for S in (64, 4096):
        case = make_case(2, S, 1, 16, state=False)
        case.R *= 0.5
        case.x[:, :, 1] += 8.0 if long_memory else 0.0
        with torch.no_grad():
            h = functional.slstm(case.x.float(), case.R.float(), backend="cpu")
            truth = functional.slstm(case.x, case.R, backend="cpu")
        errors[S] = error(h[:, -64:], truth[:, -64:])
    if long_memory:  # m loses 2^-25 a step, and 4096 steps are still remembered
        assert errors[4096] <= 1e-5
    else:
        assert errors[4096] <= 2 * max(errors[64], 1e-7)


# ---- resets, packed sequences, states


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_reset_starts_a_sample_afresh(state, isa):
    case = make_case(4, 23, 2, 10, state=state)
    reset = torch.rand(4, 23, generator=torch.Generator().manual_seed(1)) < 0.2
    reset[0], reset[1, 0], reset[2] = False, True, True
    case.options["reset"] = reset.t().contiguous().t()  # unusual strides
    assert_close(run(case, "cpu", torch.float32), run(case, "reference"), torch.float32)
    assert_close(run(case, "cpu", torch.float64), run(case, "reference"), torch.float64)


@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("lengths", PACKED_LENGTHS, ids=str)
def test_cu_seqlens_equals_separate_sequences(lengths, with_reset, isa):
    case = packed_case(lengths, 10, with_reset)
    packed = run(case, "cpu", torch.float32)
    assert_close(packed, run(case, "reference"), torch.float32)
    assert_equals_separate(packed, case, "cpu", torch.float32)


@pytest.mark.parametrize(("B", "S"), [(0, 5), (3, 0), (0, 0)], ids=["B0", "S0", "B0-S0"])
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_nothing_to_do_passes_the_state_through(B, S, state):
    case = make_case(B, S, 2, 5, state=state)
    results = run(case, "cpu", torch.float32)
    assert results["h"].shape == (B, S, 2, 5) and results["dx"].shape == (B, S, 4, 2, 5)
    assert not results["dR"].any() and not results["db"].any()
    expected = case.to(torch.float32).state or (torch.zeros(B, 2, 5),) * 4
    assert all(torch.equal(results[name], s) for name, s in zip(("h_last", "c_last", "n_last", "m_last"), expected))
    if state:
        dh, dc, dn = case.to(torch.float32).dstate
        assert torch.equal(results["dh0"], dh) and torch.equal(results["dc0"], dc) and torch.equal(results["dn0"], dn)
        assert_close(results, run(case, "reference"), torch.float32)


def test_gradients_flow_through_some_results_only():
    case = make_case(2, 7, 2, 6)
    for wanted in range(4):
        gradients = []
        for backend in ("cpu", "reference"):
            leaves = [t.clone().requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
            h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend=backend)
            loss = ((h, last.h, last.c, last.n)[wanted] ** 2).sum()
            gradients.append(torch.autograd.grad(loss, leaves))
        for got, truth in zip(*gradients):
            torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("border", [1, 7, 19])
def test_a_sequence_in_pieces_equals_the_whole_bitwise(border):
    case = make_case(3, 20, 2, 9).to(torch.float32)
    x, R, b = case.x, case.R, case.b
    whole, end = functional.slstm(x, R, b, state=case.state, return_state=True, backend="cpu")
    first, middle = functional.slstm(x[:, :border], R, b, state=case.state, return_state=True, backend="cpu")
    second, last = functional.slstm(x[:, border:], R, b, state=middle, return_state=True, backend="cpu")
    assert torch.equal(torch.cat((first, second), 1), whole)
    assert all(torch.equal(a, e) for a, e in zip(last, end))


def test_gradients_through_pieces_equal_those_of_the_whole():
    gradients = []
    for borders in ((20,), (1, 7, 20)):
        case = make_case(2, 20, 2, 6)
        leaves = [t.requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
        state, loss, start = leaves[3:], 0.0, 0
        for end in borders:
            h, state = functional.slstm(leaves[0][:, start:end], *leaves[1:3], state=state, return_state=True, backend="cpu")
            loss, start = loss + (h * case.dh[:, start:end]).sum(), end
        gradients.append(torch.autograd.grad(loss, leaves))
    for got, truth in zip(*gradients):
        torch.testing.assert_close(got, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("every", [1, 7, 20])
def test_checkpoints_give_the_same_gradients(every, backend):
    case = make_case(3, 20, 2, 6, reset=torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.1)
    kept = run(case, backend, torch.float32)
    case.options["checkpoint_every"] = every
    again = run(case, backend, torch.float32)
    for name in NAMES:
        if name in ("dR", "db"):
            assert error(again[name], kept[name].double()) < 1e-6
        else:
            assert torch.equal(again[name], kept[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_step_equals_one_step_of_the_sequence(dtype, forget_gate):
    case = make_case(5, 9, 3, 11).to(dtype)
    before = [s.clone() for s in case.state]
    h, last = functional.slstm(
        case.x, case.R, case.b, state=case.state, return_state=True, forget_gate=forget_gate, backend="cpu"
    )
    state = case.state
    for t in range(9):
        out, state = functional.slstm_step(case.x[:, t], case.R, case.b, state, forget_gate=forget_gate, backend="cpu")
        assert out.dtype == dtype
        torch.testing.assert_close(out, h[:, t], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    for got, expected in zip(state, last):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(case.state, before))


# ---- layouts


@pytest.mark.parametrize("layout", ["sliced", "permuted", "last-stride-2", "transposed", "offset"])
@pytest.mark.parametrize("DH", [1, 8, 9])
def test_slstm_does_not_depend_on_the_layout(layout, DH):
    case = make_case(3, 6, 2, DH)
    plain = run(case, "cpu", torch.float32)
    case = case.to(torch.float32)
    leaves = [strided(t, layout).detach().requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
    h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend="cpu")
    incoming = [strided(t, layout) for t in (case.dh, *case.dstate)]
    gradients = torch.autograd.grad((h, *last[:3]), leaves, incoming)
    assert equal(plain, {name: t.detach() for name, t in zip(NAMES, (h, *last, *gradients))})


def test_slstm_takes_expanded_operands_and_gradients():
    case = make_case(3, 6, 2, 5)
    case.x = case.x[:1, :, :, :1].expand(3, 6, 4, 2, 5)
    case.dh = torch.ones((), dtype=torch.float64).expand(3, 6, 2, 5)
    results = run(case, "cpu", torch.float32)
    assert_close(results, run(case, "reference"), torch.float32)
    x = case.x[:1, :, :, :1].float().requires_grad_()
    functional.slstm(x.expand(3, 6, 4, 2, 5), case.R.float(), case.b.float(), backend="cpu").sum().backward()
    assert x.grad.shape == x.shape


# ---- bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, isa):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(make_case(13, 17, 3, 21), "cpu", dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name in results[0]:
            if name != "dR":  # dR is PyTorch's matrix product
                assert torch.equal(results[0][name], other[name]), name


@pytest.mark.parametrize("DH", [5, 32])
def test_bits_of_a_row_do_not_depend_on_the_others(DH, isa):
    case = make_case(19, 9, 2, DH)
    whole = run(case, "cpu", torch.float32)
    for rows in ([0], [18], [3, 7], list(range(5, 14))):
        part = make_case(19, 9, 2, DH)
        part.x, part.dh = case.x[rows], case.dh[rows]
        part.state, part.dstate = tuple(s[rows] for s in case.state), tuple(d[rows] for d in case.dstate)
        results = run(part, "cpu", torch.float32)
        for name in NAMES:
            if name not in ("dR", "db"):
                assert torch.equal(results[name], whole[name][rows]), name


def test_two_backward_passes_give_the_same_gradients():
    case = make_case(3, 15, 2, 12).to(torch.float32)
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
    h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend="cpu")
    first = torch.autograd.grad((h, *last[:3]), leaves, (case.dh, *case.dstate), retain_graph=True)
    second = torch.autograd.grad((h, *last[:3]), leaves, (case.dh, *case.dstate))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_operands_are_never_written():
    case = make_case(3, 8, 2, 5).to(torch.float32)
    tensors = [case.x, case.R, case.b, *case.state, case.dh, *case.dstate]
    before = [t.clone() for t in tensors]
    run(case, "cpu", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


# ---- PyTorch


def op_arguments(**changes):
    case = make_case(2, 5, 2, 6).to(torch.float32)
    arguments = dict(
        x=case.x, R=case.R, b=case.b, h0=None, c0=None, n0=None, m0=None, reset=None, cu_seqlens=None,
        forget_gate="sigmoid", save=True, backend="cpu",
    )  # fmt: skip
    return arguments | changes


def op_cases():
    case = make_case(2, 5, 2, 6).to(torch.float32)
    packed = make_case(1, 7, 2, 6, rows=2).to(torch.float32)
    states = dict(zip(("h0", "c0", "n0", "m0"), case.state))
    borders = torch.tensor([0, 3, 7], dtype=torch.int32)
    return {
        "plain": op_arguments(),
        "state": op_arguments(**states, reset=torch.zeros(2, 5, dtype=torch.bool)),
        "nothing saved": op_arguments(b=None, save=False, forget_gate="exp"),
        "packed": op_arguments(x=packed.x, **dict(zip(states, packed.state)), cu_seqlens=borders),
        "bfloat16": op_arguments(x=case.x.bfloat16(), R=case.R.bfloat16()),
        "float64": op_arguments(x=case.x.double(), R=case.R.double(), b=case.b.double()),
        "strided": op_arguments(x=case.x.transpose(0, 1).contiguous().transpose(0, 1)),
        "empty": op_arguments(x=case.x[:, :0]),
    }


@pytest.mark.parametrize("name", op_cases())
def test_opcheck(name):
    arguments = op_cases()[name]
    torch.library.opcheck(torch.ops.xlstm_cuda.slstm_forward.default, tuple(arguments.values()))
    if not arguments["save"]:
        return
    h, *last, gates, cells = torch.ops.xlstm_cuda.slstm_forward(*arguments.values())
    a = arguments
    saved = (a["R"], a["h0"], a["c0"], a["n0"], a["reset"], a["cu_seqlens"], gates, cells, None, a["forget_gate"], "cpu")
    incoming = (torch.randn_like(h), None, *(torch.randn_like(s) for s in last[1:3]))
    torch.library.opcheck(torch.ops.xlstm_cuda.slstm_backward.default, (*incoming, *saved))


def test_gradcheck_of_every_operand():
    case = make_case(2, 4, 2, 3, reset=torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool))
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b, *case.state)]

    def gauge_free(x, R, b, *state):
        h, last = functional.slstm(x, R, b, state=state, return_state=True, backend="cpu", **case.options)
        return h, last.h, last.c * last.m.exp(), last.n * last.m.exp()

    assert torch.autograd.gradcheck(gauge_free, leaves, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_into_one_graph_forward_and_backward(dynamic):
    def call(x, R, b, h0, c0, n0, m0):
        h, last = functional.slstm(x.tanh(), R, b, state=(h0, c0, n0, m0), return_state=True, backend="cpu")
        return (h * 2).sum() + last.c.sum() + (last.n * last.h).sum()

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    for S in (5, 9):
        case = make_case(2, S, 2, 6).to(torch.float32)
        assert_same_gradients(compiled, call, case)


def test_step_compiles_into_one_graph():
    case = make_case(2, 1, 2, 6).to(torch.float32)

    def call(x, R, b, *state):
        h, last = functional.slstm_step(x * 2, R, b, state, backend="cpu")
        return h + 1, last

    torch._dynamo.reset()
    arguments = (case.x[:, 0], case.R, case.b, *case.state)
    with torch.no_grad():
        (h, last), (h_, last_) = call(*arguments), torch.compile(call, fullgraph=True)(*arguments)
    assert all(torch.equal(a, b) for a, b in zip((h, *last), (h_, *last_)))


def test_nothing_is_saved_without_gradients():
    case = make_case(2, 5, 2, 6).to(torch.float32)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        h = functional.slstm(case.x, case.R, case.b, backend="cpu")
        assert not h.requires_grad and not packed
        with torch.no_grad():
            assert not functional.slstm(case.x.requires_grad_(), case.R, case.b, backend="cpu").requires_grad
        assert not packed
        h, last = functional.slstm(case.x, case.R, case.b, return_state=True, backend="cpu")
    assert len(packed) == 3 and h.requires_grad and last.c.requires_grad and not last.m.requires_grad


def test_double_backward_raises():
    case = make_case(2, 5, 2, 6).to(torch.float32)
    x = case.x.requires_grad_()
    h = functional.slstm(x, case.R, case.b, backend="cpu")
    (dx,) = torch.autograd.grad(h.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_forward_mode_raises():
    case = make_case(2, 5, 2, 6).to(torch.float32)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.x, torch.ones_like(case.x))
        with pytest.raises(RuntimeError, match="forward mode AD"):
            functional.slstm(dual, case.R, case.b, backend="cpu")


# ---- processes and instruction sets


def test_a_forked_process_can_compute():
    """What a DataLoader worker may do: fork after the parent has used its threads."""
    case = make_case(13, 17, 3, 21).to(torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return functional.slstm(case.x, case.R, case.b, state=case.state, backend="cpu")

    try:
        h = forward()
        child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if torch.equal(forward(), h) else 1))
        child.start()
        child.join(timeout=60)
        hangs = child.is_alive()
        child.kill()
        assert not hangs and child.exitcode == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_instruction_set(isa):
    code = "from xlstm_cuda.native import _C; print(_C.cpu_isa())"
    environment = os.environ | {"XLSTM_CPU_ISA": isa}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.strip() == isa


def test_an_unknown_instruction_set_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"XLSTM_CPU_ISA: got 'mmx', expected one of: baseline"):
        _C.select_cpu_isa("mmx")


# ---- implementations that are not ours (how to call them, and where they are wrong: they branch on n = 0 per batch)


def oracle_case():
    case = make_case(2, 9, 3, 16, state=False)
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b)]
    h, last = functional.slstm(*leaves, return_state=True, backend="cpu")
    return case, leaves, h, last, torch.autograd.grad((h * case.dh).sum(), leaves)


def test_slstm_equals_flashrnn_vanilla():
    flashrnn = pytest.importorskip("flashrnn", reason="peer flashrnn is not installed (requirements-peers.txt)")
    case, leaves, h, last, gradients = oracle_case()
    start = torch.zeros(4, 2, 1, 3, 16, dtype=torch.float64)
    states, _ = flashrnn.flashrnn(*leaves, states=start, function="slstm", backend="vanilla", dtype="float32")
    torch.testing.assert_close(states[0], h, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(last, states):
        torch.testing.assert_close(theirs[:, -1], ours, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad((states[0] * case.dh).sum(), leaves)):
        torch.testing.assert_close(theirs, ours, rtol=1e-11, atol=1e-12)


def test_slstm_equals_the_official_vanilla_function():
    case, leaves, h, _, gradients = oracle_case()
    theirs_h = official_vanilla(*leaves)
    torch.testing.assert_close(theirs_h, h, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad((theirs_h * case.dh).sum(), leaves)):
        torch.testing.assert_close(theirs, ours, rtol=1e-11, atol=1e-12)
