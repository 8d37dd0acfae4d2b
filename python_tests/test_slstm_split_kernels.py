"""The cluster and grid kernels of the sLSTM: units of a head over several blocks, which exchange h and dh every step.

They hold any head dim, so what test_slstm_kernels.py asserts of the resident kernel is asserted of them here too, at small
sizes; and what only they have: the exchange under many schedules, its races, launches that cannot be resident together.
"""

from __future__ import annotations

import itertools

import pytest
import test_slstm_kernels as resident
import torch
from backend_fixture import KERNELS, backend_fixture
from slstm_cases import NAMES, assert_close, device_of, error, make_case, rounded, run
from test_slstm_kernels import HALF, full_case, traced

import xlstm_cuda
from xlstm_cuda import functional, simt
from xlstm_cuda.ops.slstm_kernels import forced_kernel

SPLIT = ("grid", "cluster")


backend = backend_fixture(KERNELS)


@pytest.fixture(params=SPLIT)
def kernel(request) -> str:
    return request.param


def needs(kernel: str, backend: str) -> None:
    if kernel == "cluster" and backend == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("clusters need sm_90")


def check(case, kernel: str, backend: str, dtype: torch.dtype, processors: int = 0) -> dict:
    needs(kernel, backend)
    with forced_kernel(kernel, processors):
        got = run(case, backend, dtype)
    assert_close(got, run(rounded(case, dtype), "reference"), dtype)
    return got


def contracting(*shape: int, **options):
    case = make_case(*shape, **options)
    case.R *= 0.5  # the tolerances are for a contracting recurrence: chaos has none
    return case


# ---- shapes

QUICK = [
    ("grid", 136, torch.bfloat16, 3, 9),
    ("grid", 192, torch.float16, 8, 4),
    ("grid", 256, torch.bfloat16, 9, 3),
    ("grid", 136, torch.float32, 1, 5),
    ("grid", 72, torch.float32, 9, 4),
    ("grid", 8, torch.bfloat16, 17, 3),
    ("cluster", 136, torch.bfloat16, 1, 9),
    ("cluster", 192, torch.bfloat16, 17, 3),
    ("cluster", 256, torch.float16, 8, 4),
    ("cluster", 40, torch.bfloat16, 3, 5),
]


@pytest.mark.parametrize(("kernel", "DH", "dtype", "B", "S"), QUICK, ids=lambda v: str(v).removeprefix("torch."))
def test_split_kernels_equal_the_reference(kernel, DH, dtype, B, S, backend):
    check(
        contracting(B, S, 2 if DH < 150 else 1, DH, state=S != 4, forget_gate="exp" if S == 3 else "sigmoid"),
        kernel,
        backend,
        dtype,
    )


ROWS = itertools.cycle([3, 8, 1, 9, 17])
DEEP = [
    (kernel, DH, dtype, next(ROWS), sm)
    for kernel, DH, dtype, sm in itertools.product(SPLIT, (320, 512, 648, 768, 1024), (*HALF, torch.float32), (80, 86, 90))
    if (kernel == "grid" or (DH <= 768 and dtype != torch.float32 and sm == 90))
    and (dtype != torch.float32 or DH <= {80: 768, 86: 512, 90: 1024}[sm])
]


@pytest.mark.deep
@pytest.mark.parametrize(("kernel", "DH", "dtype", "B", "sm"), DEEP, ids=lambda v: str(v).removeprefix("torch."))
def test_split_kernels_of_large_heads_equal_the_reference(kernel, DH, dtype, B, sm, backend):
    if backend == "cuda" and sm != 90:
        pytest.skip("the device is what it is")
    with simt.options(sm=sm):
        check(contracting(B, 3, 1, DH), kernel, backend, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_split_kernels_take_resets_and_cu_seqlens(dtype, kernel, backend):
    if kernel == "cluster" and dtype == torch.float32:
        pytest.skip("the cluster kernel has no float32")
    case = full_case(72)
    case.R *= 0.5
    packed = check(case, kernel, backend, dtype)
    borders = case.options["cu_seqlens"].tolist()
    for row in (0, 1, 9):  # of either tile, and one without steps
        one = make_case(1, 0, 1, 72)
        steps = slice(borders[row], borders[row + 1])
        one.x, one.dh, one.R, one.b = case.x[:, steps], case.dh[:, steps], case.R, case.b
        one.state = tuple(s[row : row + 1] for s in case.state)
        one.dstate = tuple(d[row : row + 1] for d in case.dstate)
        one.options["reset"] = case.options["reset"][:, steps]
        with forced_kernel(kernel):
            alone = run(one, backend, dtype)
        assert torch.equal(alone["h"], packed["h"][:, steps]) and torch.equal(alone["dx"], packed["dx"][:, steps])
        assert all(torch.equal(alone[name][0], packed[name][row]) for name in NAMES if name.endswith(("last", "0")))


RESIDENT_TESTS = [
    (resident.test_slstm_of_any_length_equals_the_reference, {"S": 0}),
    (resident.test_slstm_of_any_length_equals_the_reference, {"S": 17}),
    (resident.test_slstm_of_any_batch_equals_the_reference, {"B": 17}),
    (resident.test_slstm_pads_a_head_dim_that_is_no_multiple_of_8, {"DH": 23}),
    (resident.test_slstm_at_extreme_gates, {"gate": 0, "value": -float("inf"), "where": "prefix"}),
    (resident.test_slstm_at_extreme_gates, {"gate": 1, "value": -float("inf"), "where": "every-third"}),
    (resident.test_slstm_at_extreme_gates, {"gate": 0, "value": 1e4, "where": "every-third"}),
    (resident.test_both_gates_closed_leave_a_fresh_state, {}),
    (resident.test_one_fresh_sample_among_running_ones_is_treated_alone, {}),
    (resident.test_nan_stays_in_its_sample_and_head_from_its_step_on, {}),
    (resident.test_nan_ends_at_a_reset, {}),
    (resident.test_reset_starts_a_sample_afresh, {"state": True}),
    (resident.test_gradients_flow_through_some_results_only, {"wanted": "c_last"}),
    (resident.test_a_sequence_in_pieces_equals_the_whole_bitwise, {"border": 7}),
    (resident.test_last_h_is_not_rounded, {"forget_gate": "exp"}),
    (resident.test_checkpoints_give_the_same_gradients, {"every": 7}),
    (resident.test_slstm_does_not_depend_on_the_layout, {"layout": "sliced", "DH": 40}),
    (resident.test_bits_of_a_row_do_not_depend_on_the_others, {"DH": 64}),
    (resident.test_two_backward_passes_give_the_same_gradients, {}),
]


@pytest.mark.parametrize(
    ("test", "arguments"), RESIDENT_TESTS, ids=[f"{t.__name__[5:45]}-{list(a.values())}" for t, a in RESIDENT_TESTS]
)
def test_split_kernels_pass_the_tests_of_the_resident_kernel(test, arguments, kernel, backend):
    needs(kernel, backend)
    with forced_kernel(kernel):
        test(**arguments, dtype=torch.bfloat16, backend=backend)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("test", "arguments"), RESIDENT_TESTS, ids=[f"{t.__name__[5:45]}-{list(a.values())}" for t, a in RESIDENT_TESTS]
)
def test_split_kernels_pass_the_tests_of_the_resident_kernel_in_other_dtypes(test, arguments, dtype, kernel, backend):
    needs(kernel, backend)
    if kernel == "cluster" and dtype == torch.float32:
        pytest.skip("the cluster kernel has no float32")
    with forced_kernel(kernel):
        test(**arguments, dtype=dtype, backend=backend)


@pytest.mark.parametrize(("forward", "backward"), [*itertools.permutations(("resident", "cluster", "grid"), 2)])
def test_backward_reads_what_another_kernel_saved(forward, backward, backend):
    needs("cluster", backend)
    case = contracting(3, 6, 1, 48)
    case.options["reset"] = torch.zeros(3, 6, dtype=torch.bool)
    case.options["reset"][1, 2] = True
    on = case.to(torch.bfloat16).on(device_of(backend))
    leaves = [t.detach().requires_grad_() for t in (on.x, on.R, on.b, *on.state)]
    with forced_kernel(forward):
        h, last = functional.slstm(*leaves[:3], state=leaves[3:], return_state=True, backend=backend, **on.options)
    with forced_kernel(backward):
        gradients = torch.autograd.grad((h, *last[:3]), leaves, (on.dh, *on.dstate))
    truth = run(rounded(case, torch.bfloat16), "reference")
    assert_close(dict(zip(NAMES[5:], (g.cpu() for g in gradients))), {n: truth[n] for n in NAMES[5:]}, torch.bfloat16)


@pytest.mark.deep
def test_error_of_split_kernels_does_not_grow_with_the_sequence(kernel, backend):
    needs(kernel, backend)
    case = contracting(1, 1024, 1, 40, state=False)
    with torch.no_grad(), forced_kernel(kernel):
        on = case.to(torch.bfloat16).on(device_of(backend))
        h = functional.slstm(on.x, on.R, on.b, backend=backend).cpu()
    true = rounded(case, torch.bfloat16)
    assert error(h[:, -64:], functional.slstm(true.x, true.R, true.b, backend="cpu")[:, -64:]) < 4e-3


# ---- launches


def test_grid_kernel_refuses_blocks_that_cannot_be_resident_together(backend):
    case = make_case(1, 2, 1, 136).to(torch.bfloat16).on(device_of(backend))
    with forced_kernel("grid", processors=4), pytest.raises(RuntimeError, match="DH 136 needs 5 of them, this device fits 4"):
        functional.slstm(case.x, case.R, case.b, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_grid_kernel_of_more_groups_than_fit_takes_several_launches(dtype, backend):
    case = contracting(9, 4, 2, 72)  # 2 heads x 2 tiles of rows, 3 blocks each (float32: 5)
    whole = check(case, "grid", backend, dtype)
    pieces = check(case, "grid", backend, dtype, processors=7)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.parametrize(("DH", "blocks"), [(264, 6), (376, 8)])
def test_a_device_of_small_clusters_takes_fewer_blocks_with_more_units(DH, blocks):
    """32 units a block would be 9 and 12 blocks; 48 units fit clusters of 8."""
    backend = traced()
    case = contracting(3, 2, 1, DH)
    with simt.profile() as launches, simt.options(largest_cluster=8):
        got = run(case, backend, torch.bfloat16)
    assert_close(got, run(rounded(case, torch.bfloat16), "reference"), torch.bfloat16)
    clusters = {launch["kernel"]: launch["cluster"] for launch in launches}
    assert clusters == {"slstm_cluster_forward": (blocks, 1, 1), "slstm_cluster_backward": (blocks, 1, 1)}


def test_a_device_without_large_clusters_takes_the_grid_kernel():
    backend = traced()
    case = contracting(3, 2, 1, 392)  # 9 blocks of 48 units
    with simt.profile() as launches, simt.options(largest_cluster=8):
        got = run(case, backend, torch.bfloat16)
    assert_close(got, run(rounded(case, torch.bfloat16), "reference"), torch.bfloat16)
    assert {launch["kernel"] for launch in launches if "zero" not in launch["kernel"]} == {
        "slstm_grid_forward",
        "slstm_grid_backward",
    }


@pytest.mark.parametrize(
    ("DH", "device", "words"),
    [
        (392, {"largest_cluster": 8}, r"DH 392 does not fit: .* holds no cluster of that size"),
        (136, {"sm": 86}, "clusters need sm_90 or sm_100, this device is sm_86"),
    ],
    ids=["small clusters", "no clusters"],
)
def test_cluster_kernel_refuses_what_the_device_does_not_hold(DH, device, words):
    case = make_case(1, 2, 1, DH).to(torch.bfloat16)
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    with forced_kernel("cluster"), simt.options(**device), pytest.raises(ValueError, match=words):
        functional.slstm(case.x, case.R, case.b, backend="simt")


@pytest.mark.parametrize(
    ("kernel", "DH", "dtype", "sm", "words"),
    [
        ("cluster", 776, torch.bfloat16, 90, "DH 776 does not fit: up to DH 768"),
        ("cluster", 136, torch.float32, 90, "got float32, expected bfloat16 or float16"),
        ("grid", 1032, torch.bfloat16, 90, "DH 1032 does not fit: up to DH 1024"),
        ("grid", 768, torch.float32, 86, "DH 768 does not fit"),
    ],
)
def test_split_kernels_refuse_what_they_do_not_hold(kernel, DH, dtype, sm, words):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    x, R = torch.zeros(1, 1, 4, 1, DH, dtype=dtype), torch.zeros(4, 1, DH, DH, dtype=dtype)
    with forced_kernel(kernel), simt.options(sm=sm), pytest.raises(ValueError, match=words):
        functional.slstm(x, R, None, backend="simt")


# ---- the exchange: schedules and races


def tiny_case():
    """Three blocks (grid), or three of a cluster; rows of different lengths, resets, two tiles of rows."""
    case = full_case(72)
    case.R *= 0.5
    return case


@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo", "starve"])
@pytest.mark.parametrize("landing", ["early", "late"])
def test_split_kernels_have_the_same_bits_with_any_schedule(landing, order, kernel):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    with forced_kernel(kernel):
        once = run(tiny_case(), "simt", torch.bfloat16)
        with simt.options(order=order, landing=landing):
            again = run(tiny_case(), "simt", torch.bfloat16)
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_split_kernels_have_the_same_bits_with_40_random_schedules(dtype, kernel):
    """Half of them fair, half with one lane, warp or block held back: only those find an exchange that takes a fast block's next
    piece for a slow one's."""
    if kernel == "cluster" and dtype == torch.float32:
        pytest.skip("the cluster kernel has no float32")
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    case = make_case(3, 4, 1, 72 if dtype == torch.bfloat16 else 40)
    with forced_kernel(kernel):
        once = run(case, "simt", dtype)
        for seed in range(40):
            with simt.options(order=("random", "starve")[seed % 2], seed=seed, landing="random"):
                again = run(case, "simt", dtype)
            assert all(torch.equal(once[name], again[name]) for name in once), f"seed {seed}"


def find_races(kernel, case, dtype=torch.bfloat16, **options):
    """Runs forward and backward where each access is checked; a data race is an error of the executor's."""
    backend = traced()
    with simt.options(races=True, **options), forced_kernel(kernel):
        run(case, backend, dtype)


def race_case():
    case = make_case(3, 4, 1, 72)  # three blocks
    case.options["reset"] = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.25
    return case


@pytest.mark.parametrize(("order", "landing"), [("lifo", "late"), ("random", "early"), ("starve", "random")])
def test_split_kernels_have_no_data_race(order, landing, kernel):
    find_races(kernel, race_case(), order=order, landing=landing)


@pytest.mark.deep
@pytest.mark.parametrize("order", simt.ORDERS)
@pytest.mark.parametrize("landing", ["early", "late"])
def test_split_kernels_with_rows_of_any_length_have_no_data_race(landing, order, kernel):
    find_races(kernel, tiny_case(), order=order, landing=landing)


@pytest.mark.deep
@pytest.mark.parametrize("order", simt.ORDERS)
@pytest.mark.parametrize(
    ("kernel", "DH", "dtype", "sm"),
    [
        ("grid", 328, torch.bfloat16, 80),
        ("grid", 776, torch.bfloat16, 86),
        ("grid", 72, torch.float32, 86),
        ("cluster", 328, torch.float16, 90),
        ("cluster", 520, torch.bfloat16, 90),
    ],
)
def test_split_kernels_of_every_shape_have_no_data_race(kernel, DH, dtype, sm, order):
    find_races(kernel, make_case(3, 4, 1, DH), dtype, order=order, sm=sm)
