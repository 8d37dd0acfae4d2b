"""The mLSTM kernels of csrc/cpu: every instruction set, exactness, limits, bitwise promises, threads, dtypes in memory."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import mlstm_cases
import pytest
import tolerances
import torch
import torch.utils.checkpoint
from isa_fixture import isa_fixture
from mlstm_cases import Case
from torch.utils.flop_counter import FlopCounterMode

from xlstm_cuda import functional
from xlstm_cuda.ops import mlstm, mlstm_cpu
from xlstm_cuda.ops.signatures import MLSTMIncoming, MLSTMOperands, MLSTMOptions, MLSTMSaved

ALL_OPTIONS = (
    {"eps": 0.0},
    {"eps": 0.0, "normalizer_grad": "detached"},
    {"igate": "sigmoid", "eps": 0.0},
    {"igate": "sigmoid", "normalize": False},
)
isa = isa_fixture()


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def errors(case: Case, **kwargs) -> dict[str, float]:
    """Relative to the terms that cancel in df and dm0."""
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, "cpu", **kwargs), mlstm_cases.truth(case, tensors, **kwargs)
    return {name: tolerances.rms_ratio(value, true[name], true.get(f"{name} terms")) for name, value in got.items()}


@pytest.mark.parametrize("dtype,allowed", [(torch.float32, 5e-5), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("gates", ["normal", "f-inf every 7th", "f-1e4 every 8th", "both -inf"])
@pytest.mark.parametrize("S", [5, 64, 150])  # one short chunk, a whole one, several
def test_mlstm_on_every_instruction_set_matches_reference(S, gates, dtype, allowed, isa):
    found = errors(Case(S=S, dtype=dtype, gates=gates, state=S == 64, options={"eps": 0.0}))
    assert max(found.values()) <= allowed, found


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(1, 5), (17, 33), (48, 16), (256, 64)])
def test_options_on_every_instruction_set_match_reference(DHQK, DHHV, options, isa):
    found = errors(Case(B=1, S=100, NH=2, DHQK=DHQK, DHHV=DHHV, state=True, options=options))
    assert max(found.values()) <= 1e-12, found


@pytest.mark.parametrize("S,chunk_size", [*itertools.product((70, 200), (None, 16, 64, 256))])
def test_float64_is_exact_where_forget_gates_are_far_below_zero(S, chunk_size):
    """Sums of logarithms of 1e4 cancel: 8e-11 with sums in float64."""
    for seed in range(4):
        case = Case(S=S, gates="f-1e4 every 8th", state=True, seed=seed, options={"eps": 0.0, "chunk_size": chunk_size})
        found = errors(case)
        assert max(found.values()) <= 1e-13, (seed, found)


@pytest.mark.parametrize("shift", [3.0, 8.0, -3.0])
@pytest.mark.parametrize("S,D", [(32, 64), (100, 48), (300, 64), (300, 256)])
def test_forget_gradient_is_right_where_its_terms_cancel(S, D, shift):
    """Against what is left of them: (M7) is a difference of sums."""
    case = Case(B=1, S=S, NH=2, DHQK=D, DHHV=D, dtype=torch.float32, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[4] += shift - 3.0
    got, true = (run(tensors) for run in (lambda x: mlstm_cases.run(case, x, "cpu"), lambda x: mlstm_cases.truth(case, x)))
    assert tolerances.rms_ratio(got["df"], true["df"]) <= 1e-5


# ---- limits


@pytest.mark.parametrize("i", [85.0, 90.0, 100.0, 110.0])
@pytest.mark.parametrize("lengths", [None, (7, 33)], ids=str)
def test_a_query_of_zero_gives_zero_and_finite_gradients_at_eps_zero(i, lengths, isa):
    """m is above 88.7, so that 1 / exp(-m) is no number of float32."""
    case = Case(B=1, S=40, NH=2, dtype=torch.float32, lengths=lengths, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[0][:, 20].zero_()
        tensors[3].add_(i)
    result = mlstm_cases.run(case, tensors, "cpu", loss_on_state=False)
    assert (result["h"][:, 20] == 0).all()
    for name in ("h", "dk", "dv", "di", "df"):
        assert result[name].isfinite().all(), name


def test_a_loss_on_the_state_alone_does_not_read_the_normaliser(isa):
    case = Case(B=1, S=40, NH=2, dtype=torch.float32, state=True, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    with torch.no_grad():
        tensors[0].zero_()
        tensors[3].add_(100.0)
    h, state = functional.mlstm(*tensors[:5], state=tuple(tensors[5:]), return_state=True, eps=0.0, backend="cpu")
    assert (h == 0).all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(state.C.sum(), tensors, allow_unused=True) if x is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("S", [33, 70, 130])
def test_only_the_steps_that_there_are_are_computed(S, dtype):
    """At eps = 0 a padded step would divide by exp(-m): the last chunk is short, and m is high."""
    tensors = mlstm_cases.inputs(Case(S=S, dtype=dtype, gates="i+100"))
    result = functional.mlstm(*tensors, eps=0.0, backend="cpu")
    assert result.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(result.sum(), tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gates", ["i-inf one token", "i-inf all", "both -inf", "f-inf every 7th", "f-inf all"])
@pytest.mark.parametrize("normalize", [True, False])
def test_closed_gates_with_a_sigmoid_input_gate_match_reference(normalize, gates, dtype, isa):
    case = Case(S=70, NH=2, gates=gates, dtype=dtype, state=True)
    found = errors(replace(case, options={"igate": "sigmoid", "normalize": normalize, "eps": 0.0}))
    assert max(found.values()) <= (1e-12 if dtype == torch.float64 else 2e-5), found


# ---- bitwise promises


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("chunk_size", [16, 32, 64])
@pytest.mark.parametrize("B,NH,DHQK,DHHV,tail", [(3, 2, 16, 24, 5), (3, 2, 40, 16, 5), (1, 1, 16, 128, 0), (1, 1, 40, 64, 7)])
def test_a_split_at_any_multiple_of_the_chunk_size_gives_the_same_bits(B, NH, DHQK, DHHV, tail, chunk_size, dtype):
    case = Case(B=B, S=3 * chunk_size + tail, NH=NH, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    *operands, C0, n0, m0 = (x.detach() for x in mlstm_cases.inputs(case))
    options = {"return_state": True, "chunk_size": chunk_size, "backend": "cpu"}
    whole, last = functional.mlstm(*operands, state=(C0, n0, m0), **options)
    for border in range(chunk_size, case.S, chunk_size):
        first, state = functional.mlstm(*(x[:, :border] for x in operands), state=(C0, n0, m0), **options)
        second, end = functional.mlstm(*(x[:, border:] for x in operands), state=state, **options)
        assert torch.equal(torch.cat([first, second], 1), whole), border
        assert all(torch.equal(a, b) for a, b in zip(end, last)), border


#: S, DHQK, DHHV, and the chunk that is chosen where none is given.
CHUNKS = [
    (40, 16, 16, 64), (80, 16, 16, 32), (64, 32, 32, 64), (100, 16, 24, 32), (300, 32, 16, 32), (96, 64, 64, 128),
    (128, 64, 64, 128), (160, 64, 64, 64), (300, 40, 64, 64), (192, 128, 128, 256), (320, 128, 128, 64),
    (256, 192, 192, 256), (320, 256, 256, 128), (512, 256, 256, 256), (520, 256, 256, 128),
]  # fmt: skip


@pytest.mark.parametrize("S,DHQK,DHHV,chosen", CHUNKS)
def test_the_chosen_chunk_is_the_one_that_needs_the_fewest_products(S, DHQK, DHHV, chosen):
    case = Case(B=1, S=S, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=torch.float32)
    tensors = mlstm_cases.inputs(case)
    got = mlstm_cases.run(case, tensors, "cpu")
    sizes = {size: mlstm_cases.run(replace(case, options={"chunk_size": size}), tensors, "cpu") for size in (32, 64, 128, 256)}
    alike = [size for size, other in sizes.items() if all(torch.equal(x, other[name]) for name, x in got.items())]
    whole = [size for size in sizes if min(size, S) == min(chosen, S)]
    assert alike == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("S", [1, 20, 64, 130])
def test_a_row_alone_has_the_bits_that_it_has_in_its_batch(S, dtype):
    case = Case(B=5, S=S, NH=3, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    weight = torch.randn(5, S, 3, case.DHHV, generator=torch.Generator().manual_seed(1)).to(dtype)

    def run(rows: slice) -> list[torch.Tensor]:
        leaves = [x.detach()[rows].clone().requires_grad_() for x in tensors]
        h, last = functional.mlstm(*leaves[:5], state=tuple(leaves[5:]), return_state=True, backend="cpu")
        return [h, *last, *torch.autograd.grad((h * weight[rows]).sum() + last.C.sum(), leaves)]

    whole = run(slice(0, 5))
    for row in range(5):
        assert all(torch.equal(a[0], b[row]) for a, b in zip(run(slice(row, row + 1)), whole)), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("lengths", [(70, 0, 1, 129), (65,), (40, 64, 200)], ids=str)
def test_a_packed_sequence_has_the_bits_that_it_has_alone(lengths, dtype):
    case = Case(B=1, S=sum(lengths), lengths=lengths, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    got = mlstm_cases.run(case, tensors, "cpu")
    generator = torch.Generator().manual_seed(case.seed + 1)
    weights = [torch.randn(got[x].shape, generator=generator, dtype=torch.float64).to(got["h"].dtype) for x in ("h", "C", "n")]
    first = 0
    for n, length in enumerate(lengths):
        leaves = [x.detach()[:, first : first + length].clone().requires_grad_() for x in tensors[:5]]
        leaves += [x.detach()[n : n + 1].clone().requires_grad_() for x in tensors[5:]]
        h, last = functional.mlstm(*leaves[:5], state=tuple(leaves[5:]), return_state=True, backend="cpu")
        loss = (h * weights[0][:, first : first + length]).sum()
        loss = loss + (last.C * weights[1][n].to(last.C.dtype)).sum() + (last.n * weights[2][n].to(last.n.dtype)).sum()
        gradients = torch.autograd.grad(loss, leaves)
        assert torch.equal(h, got["h"][:, first : first + length])
        assert all(torch.equal(x[0], got[name][n]) for name, x in zip("Cnm", last))
        for name, x in zip(mlstm_cases.NAMES[:5], gradients):
            assert torch.equal(x, got["d" + name][:, first : first + length]), name
        for name, x in zip(mlstm_cases.NAMES[5:7], gradients[5:7]):
            assert torch.equal(x[0], got["d" + name][n]), name
        first += length


@pytest.mark.parametrize("case", [Case(B=3, S=200, NH=3, DHQK=64, DHHV=64), Case(B=1, S=400, NH=1, DHQK=128, DHHV=128)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(case):
    case = replace(case, dtype=torch.float32, state=True)
    tensors = mlstm_cases.inputs(case)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count):
            results.append(mlstm_cases.run(case, tensors, "cpu"))
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in results[0])


# ---- NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("step", [0, 3, 63, 64, 99])
@pytest.mark.parametrize("poisoned", ["q", "k", "v", "i", "f"])
def test_a_nan_touches_its_sample_and_head_from_its_step_on(poisoned, step, dtype):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=2, S=100, dtype=dtype, state=True))]
    clean = functional.mlstm(*tensors[:5], state=tensors[5:], backend="cpu")
    tensors["qkvif".index(poisoned)][1, step, 2] = torch.nan
    leaves = [x.clone().requires_grad_() for x in tensors]
    h, state = functional.mlstm(*leaves[:5], state=leaves[5:], return_state=True, backend="cpu")
    touched = torch.zeros(h.shape, dtype=torch.bool)
    touched[1, step:, 2] = True
    assert torch.equal(h[~touched], clean[~touched])
    lost = h[1, step, 2] if poisoned == "q" else h[1, step:, 2]
    assert lost.isnan().all()
    if poisoned != "q":
        assert all(x[1, 2].isnan().all() for x in state)
    gradients = torch.autograd.grad(h.float().sum() + state.C.float().sum(), leaves)
    assert all(x[0].isfinite().all() and x[:, ..., :2, :].isfinite().all() for x in gradients[:3])
    assert all(x[0].isfinite().all() and x[..., :2].isfinite().all() for x in gradients[3:5])
    assert all(x[0].isfinite().all() and x[1, :2].isfinite().all() for x in gradients[5:])
    assert any(x.isnan().any() for x in gradients), "a NaN is hidden"
    if poisoned != "q":
        assert all(x[1, :, 2].isnan().all() for x in gradients[:5]) and all(x[1, 2].isnan().all() for x in gradients[5:])


@pytest.mark.parametrize("part", [0, 1, 2], ids=["C0", "n0", "m0"])
def test_a_nan_in_a_state_is_not_hidden(part):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=2, S=40, dtype=torch.float32, state=True))]
    tensors[5 + part][1, 2] = torch.nan
    leaves = [x.clone().requires_grad_() for x in tensors]
    h, state = functional.mlstm(*leaves[:5], state=leaves[5:], return_state=True, backend="cpu")
    assert h[1, :, 2].isnan().all() and h[0].isfinite().all() and h[1, :, :2].isfinite().all()
    assert state[part][1, 2].isnan().all()
    assert torch.autograd.grad(h.sum(), leaves)[0][1, :, 2].isnan().any()


# ---- how operands lie in memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(16, 24), (64, 64)])
def test_16_bit_operands_are_computed_in_float32(DHQK, DHHV, dtype):
    """h is that of the same numbers in float32, rounded once, and the state is the same."""
    case = Case(S=70, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    tensors = [x.detach() for x in mlstm_cases.inputs(case)]
    wide = [x.float() for x in tensors]
    h, state = functional.mlstm(*tensors[:5], state=tensors[5:], return_state=True, backend="cpu")
    expected, expected_state = functional.mlstm(*wide[:5], state=wide[5:], return_state=True, backend="cpu")
    assert torch.equal(h, expected.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state))


def test_16_bit_numbers_are_read_and_rounded_as_torch_does():
    """v passes through unchanged: one step, q.k = 1, no normaliser; then scaled by every power that rounds."""
    for dtype in (torch.bfloat16, torch.float16):
        numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
        numbers = numbers[numbers.isfinite()].reshape(-1, 1, 1, 256 if dtype == torch.bfloat16 else 128)
        one = torch.ones(numbers.shape[0], 1, 1, 1, dtype=dtype)
        gate = torch.full((numbers.shape[0], 1, 1), torch.inf)
        for scale in (1.0, 0.7, 3e-5):
            h = functional.mlstm(
                one, one, numbers, gate.clamp(max=100), gate, igate="sigmoid", normalize=False, scale=scale, backend="cpu"
            )
            assert torch.equal(h, (numbers.float() * torch.tensor(scale)).to(dtype)), (dtype, scale)


def test_saved_tensors_may_come_back_with_other_strides():
    tensors = mlstm_cases.inputs(Case(S=70, dtype=torch.float32, state=True))
    expected = torch.autograd.grad(functional.mlstm(*tensors[:5], state=tuple(tensors[5:]), backend="cpu").sum(), tensors)

    def restride(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] if x.is_floating_point() else x

    with torch.autograd.graph.saved_tensors_hooks(restride, lambda x: x):
        h = functional.mlstm(*tensors[:5], state=tuple(tensors[5:]), backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(h.sum(), tensors), expected))


def test_a_lazy_negation_is_read():
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(S=20, dtype=torch.float32))]
    lazy = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in tensors]
    assert all(x.is_neg() for x in lazy)
    assert torch.equal(functional.mlstm(*lazy, backend="cpu"), functional.mlstm(*tensors, backend="cpu"))


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


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("S", [0, 20, 64, 130])
def test_a_state_that_nobody_asks_for_changes_no_bit(S, state):
    tensors = mlstm_cases.inputs(Case(S=S, dtype=torch.float32, state=state))
    given = tuple(tensors[5:]) or None
    asked, _ = functional.mlstm(*tensors[:5], state=given, return_state=True, backend="cpu")
    h = functional.mlstm(*tensors[:5], state=given, backend="cpu")
    assert torch.equal(h, asked)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), tensors) for x in (h, asked))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("S,DHQK,DHHV,chunk_size", [(300, 64, 64, None), (100, 32, 48, 32), (70, 16, 16, 16), (130, 17, 64, 64)])
def test_states_kept_for_backward_change_no_bit(S, DHQK, DHHV, chunk_size, dtype, isa):
    """A call by the op, which keeps none, computes them once more."""
    case = Case(B=2, S=S, NH=3, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    options = MLSTMOptions(0.25, "exp", True, 1e-6, "cpu", chunk_size=chunk_size)
    found = []
    for call in (mlstm.mlstm, through_the_op):
        h, (C, n, _) = call(MLSTMOperands(*tensors, None), options)
        found.append(torch.autograd.grad(h.float().square().sum() + C.sum() + n.sum(), tensors))
    assert all(kept.equal(computed) for kept, computed in zip(*found))


def through_the_op(operands, options):
    h, C, n, m, _ = mlstm.FORWARD.overload(*operands, *options)
    return h, (C, n, m)


def kept_by_a_call(S, DHQK, DHHV, chunk_size=None, dtype=torch.float32, cu_seqlens=None):
    """How many numbers of states between chunks an eager call keeps for its backward."""
    q, v, i = torch.randn(1, S, 3, DHQK).to(dtype), torch.randn(1, S, 3, DHHV).to(dtype), torch.randn(1, S, 3).to(dtype)
    operands = MLSTMOperands(*(x.requires_grad_() for x in (q, q, v, i, i)), None, None, None, cu_seqlens)
    h, _ = mlstm.mlstm(operands, MLSTMOptions(0.25, "exp", True, 1e-6, "cpu", chunk_size=chunk_size))
    borders = h.grad_fn._raw_saved_tensors[-1].data
    return 0 if borders is None else borders.numel()


@pytest.mark.parametrize(
    "S,DHQK,DHHV,chunk_size,chunks",
    [(0, 64, 64, None, 1), (128, 64, 64, None, 1), (300, 64, 32, None, 5), (512, 256, 256, None, 2), (70, 16, 16, 32, 3),
     (70, 16, 16, 256, 1)],
)  # fmt: skip
def test_the_state_between_two_chunks_is_kept_for_backward(S, DHQK, DHHV, chunk_size, chunks):
    assert kept_by_a_call(S, DHQK, DHHV, chunk_size) == 3 * (chunks - 1) * (DHQK * DHHV + DHQK + 16)


def test_no_state_is_kept_where_that_cannot_be_or_takes_too_much_memory():
    borders = torch.tensor([0, 150, 300], dtype=torch.int32)
    assert kept_by_a_call(300, 64, 64) > 0 == kept_by_a_call(300, 64, 64, cu_seqlens=borders)
    assert kept_by_a_call(300, 17, 64) == 0  # no whole vectors
    assert kept_by_a_call(300, 64, 64, 16) == 0 == kept_by_a_call(600, 256, 256, 64)  # more states than half of the operands
    assert kept_by_a_call(300, 64, 64, dtype=torch.bfloat16) > 0 == kept_by_a_call(600, 128, 128, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert kept_by_a_call(300, 64, 64) == 0


def test_backward_reads_what_was_kept():
    case = Case(B=1, S=200, NH=2, DHQK=64, DHHV=64, dtype=torch.float32)
    operands = MLSTMOperands(*mlstm_cases.inputs(case), None, None, None, None)
    options = MLSTMOptions(0.25, "exp", True, 1e-6, "cpu")
    results, borders = mlstm_cpu.forward_kept(operands, options)
    found = []
    for kept in (borders, None, torch.zeros_like(borders)):
        saved = MLSTMSaved(results.h, results.dot, None, None, kept)
        found.append(mlstm_cpu.backward(MLSTMIncoming(torch.ones_like(results.h), None, None), operands, saved, options).dq)
    assert found[0].equal(found[1]) and not found[0].equal(found[2])


@pytest.mark.parametrize("D", [17, 64])
def test_a_checkpoint_may_compute_again_where_something_watches_the_ops(D):
    """The dispatcher's path keeps no states, so the eager one must not keep any inside a checkpoint."""
    x = torch.randn(1, 300, 2, D, requires_grad=True)
    gates = torch.randn(1, 300, 2)
    h, state = torch.utils.checkpoint.checkpoint(
        lambda: functional.mlstm(x, x, x, gates, gates, return_state=True), use_reentrant=False
    )
    with FlopCounterMode(display=False):
        (h.sum() + state.C.sum()).backward()
    assert x.grad.isfinite().all()
