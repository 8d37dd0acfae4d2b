"""What only the kernels of csrc/mlstm have: tiles, segments, schedules; what a launch did (tensor cores, bytes, conflicts)."""

from __future__ import annotations

from collections.abc import Iterator

import mlstm_cases
import pytest
import tolerances
import torch
from backend_fixture import KERNELS, backend_fixture
from mlstm_cases import Case, mlstm
from simt_backends import skip_unless_traced

import xlstm_cuda
from bench import mlstm_walks
from xlstm_cuda import functional, simt
from xlstm_cuda.ops import mlstm_kernels

HALF = [torch.bfloat16, torch.float16]
LIMITS = {86: "99 KiB", 80: "163 KiB", 90: "227 KiB"}  # shared memory of a block, by architecture: it chooses the tile


backend = backend_fixture(KERNELS)


@pytest.fixture(params=LIMITS, ids=LIMITS.get)
def any_limit(request, backend) -> Iterator[str]:
    """A backend with each device's shared memory; a GPU has its own."""
    if backend != "simt":
        if request.param != 90:
            pytest.skip("a GPU has one amount of shared memory")
        yield backend
        return
    with simt.options(sm=request.param):
        yield backend


@pytest.fixture
def traced() -> str:
    """Backend simt with its instrumented module."""
    skip_unless_traced()
    return "simt"


def check(case: Case, backend: str) -> None:
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, backend), mlstm_cases.truth(case, tensors)
    for name, value in got.items():
        allowed = {"h": tolerances.MLSTM_H, "C": tolerances.MLSTM_H, "df": tolerances.MLSTM_DF}.get(name, tolerances.MLSTM_GRAD)[
            case.dtype
        ]
        if name in "nm":
            allowed = 2 * tolerances.MLSTM_H[torch.float32]
        if name == "dm0":  # one number per row, and exactly what its definition makes of the other gradients
            allowed = tolerances.for_few(allowed, value.numel())
            C0, n0, dC0, dn0 = (x.detach().double() for x in (tensors[5], tensors[6], got["dC0"], got["dn0"]))
            of_others = (C0 * dC0).sum((-1, -2)) + (n0 * dn0).sum(-1)
            assert tolerances.rms_ratio(value, of_others, true["dm0 terms"]) <= 1e-6, "dm0 is not <C0, dC0> + <n0, dn0>"
        error = tolerances.rms_ratio(value, true[name], true.get(f"{name} terms"))
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


# One head dim per tile in either role: DHQK contracts in H and dV, DHHV in dQ and dK.
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(64, 128), (128, 200), (256, 72), (264, 64), (136, 512)])
def test_mlstm_every_tile_matches_reference(DHQK, DHHV, dtype, any_limit):
    check(Case(B=1, S=135, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True, options={"eps": 0.0}), any_limit)


def test_mlstm_has_the_same_bits_twice_in_pieces_and_in_another_batch_in_wide_tiles(any_limit):
    case = Case(B=2, S=130, NH=1, DHQK=72, DHHV=136, dtype=torch.bfloat16, state=True)
    tensors = mlstm_cases.inputs(case)
    once, twice = (mlstm_cases.run(case, tensors, any_limit, loss_on_state=False) for _ in range(2))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    row = [x.detach()[1:].clone().requires_grad_() for x in tensors]
    h = mlstm(*row[:5], state=row[5:], backend=any_limit)
    weight = torch.randn(once["h"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(h.dtype)
    assert torch.equal(h, once["h"][1:])
    for name, gradient in zip(mlstm_cases.NAMES, torch.autograd.grad((h * weight[1:]).sum(), row)):
        assert torch.equal(gradient, once["d" + name][1:]), name
    state, pieces = [x.detach() for x in tensors[5:]], []
    for piece in (slice(0, 64), slice(64, 130)):
        sequence = (x.detach()[:, piece] for x in tensors[:5])
        h, state = mlstm(*sequence, state=state, return_state=True, backend=any_limit)
        pieces.append(h)
    assert torch.equal(torch.cat(pieces, 1), once["h"])
    assert all(torch.equal(x, once[name]) for name, x in zip("Cnm", state))


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("DHQK", [16, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("DHHV", [16, 64, 128, 200, 256, 512])
def test_mlstm_every_pair_of_tiles_matches_reference(DHQK, DHHV, dtype, any_limit):
    # Three heads: the errors of one head's h and dn0 come from few steps, those with a small |d|.
    check(Case(B=1, S=200, NH=3, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True, options={"eps": 0.0}), any_limit)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "options",
    [{"normalizer_grad": "detached"}, {"igate": "sigmoid"}, {"igate": "sigmoid", "normalize": False}, {"scale": -0.3}],
    ids=str,
)
def test_mlstm_options_match_reference_in_16_bits(options, dtype, backend):
    check(Case(B=1, S=100, DHQK=40, DHHV=64, dtype=dtype, options=options), backend)


@pytest.mark.parametrize("gates", ["f-inf every 7th", "f-1e4 every 8th", "i-inf prefix", "i+20", "both -inf"])
def test_mlstm_gate_edges_match_reference_in_bfloat16(gates, backend):
    case = Case(B=1, S=100, DHQK=40, DHHV=64, dtype=torch.bfloat16, gates=gates, options={"eps": 0.0})
    tensors = mlstm_cases.inputs(case)
    got, true = mlstm_cases.run(case, tensors, backend), mlstm_cases.truth(case, tensors)
    for name in ("h", "dq", "dk", "dv"):
        assert tolerances.rms_ratio(got[name], true[name]) <= tolerances.MLSTM_GRAD[case.dtype], name


@pytest.mark.parametrize(
    "DHQK,DHHV,dtype", [(24, 72, torch.float32), (24, 72, torch.bfloat16), (72, 136, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("lengths", [None, (70, 0, 1, 140)], ids=str)
def test_mlstm_has_the_same_bits_for_any_number_of_segments(lengths, DHQK, DHHV, dtype, backend):
    case = Case(B=1, S=211, NH=2, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True, lengths=lengths)
    tensors = mlstm_cases.inputs(case)
    with mlstm_kernels.forced_segments(1):
        whole = mlstm_cases.run(case, tensors, backend)
    for count in (2, 3, 9):
        with mlstm_kernels.forced_segments(count):
            pieces = mlstm_cases.run(case, tensors, backend)
        for name in whole:
            assert torch.equal(whole[name], pieces[name]), f"{count} segments: {name}"


@pytest.mark.parametrize(
    "DHQK,DHHV,dtype", [(24, 72, torch.float32), (24, 72, torch.bfloat16), (72, 136, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo"])
def test_mlstm_has_the_same_bits_with_any_schedule(order, DHQK, DHHV, dtype):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    case = Case(B=1, S=130, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    once = mlstm_cases.run(case, tensors, "simt")
    with simt.options(order=order, landing="early"):
        again = mlstm_cases.run(case, tensors, "simt")
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(64, 128), (128, 256), (256, 40), (512, 64)])
@pytest.mark.parametrize("sm", LIMITS)
def test_mlstm_kernels_have_no_data_race(sm, DHQK, DHHV, dtype, traced):
    case = Case(B=1, S=150, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    with simt.options(races=True, sm=sm), mlstm_kernels.forced_segments(2):
        mlstm_cases.run(case, mlstm_cases.inputs(case), traced)


def test_mlstm_head_dim_that_no_tile_holds_raises_with_the_table(backend):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=2, NH=1, DHQK=520, DHHV=8, dtype=torch.float32))]
    with pytest.raises(ValueError, match=f"mlstm on {backend}: DHQK: got 520, expected 1 to 512.*64, 128, 256 and 512"):
        mlstm(*tensors, backend=backend)


@pytest.fixture(scope="module", params=mlstm_walks.SHAPES, ids=lambda shape: "sm_{}-D{}x{}".format(*shape))
def walks(request) -> dict[str, mlstm_walks.Walk]:
    """What the walks of one forward and backward did, by use; every tile occurs."""
    skip_unless_traced()
    return mlstm_walks.measure(*request.param)


@pytest.mark.parametrize("use", mlstm_walks.USES)
def test_mlstm_walk_uses_tensor_cores_without_bank_conflicts(use, walks):
    walk = walks[use]
    # The fewest products of 16 x 8 x 16: A S, X^T B, and A B^T, P X where the triangle is dealt out in whole tiles.
    L = 64 if max(walk.c, walk.o) <= 256 else 32
    assert walk.mma * 2048 >= walk.S * (2 * walk.c * walk.o + L / 2 * (walk.c + walk.o))
    assert walk.wide_conflicts <= 1.05
    # Per product, because a factor of all accesses rises when others are saved. The smallest tile has the fewest per record.
    assert walk.extra_wavefronts <= (0.22 if max(walk.c, walk.o) > 64 else 0.55)
    assert walk.sectors <= 1.1


@pytest.mark.parametrize("use", mlstm_walks.USES)
def test_mlstm_walk_moves_the_fewest_bytes(use, walks, record_property):
    """A, B, X in and O out once, with A and B once for every block of columns of O; dQ and dK read q and k for their row dots."""
    walk = walks[use]
    record_property("bytes over the fewest per block", walk.ratio_per_block)
    record_property("bytes over the fewest at all", walk.ratio)
    assert walk.ratio_per_block <= 1.10
    assert walk.ratio <= 1.10 * walk.fewest_per_block / walk.fewest


def test_mlstm_walks_are_wide_where_the_device_has_the_memory(walks, request):
    sm, DHQK, DHHV = request.node.callspec.params["walks"]
    columns = {"h": DHHV, "dv": DHHV, "dq": DHQK, "dk": DHQK}
    for use, walk in walks.items():
        if (DHQK, DHHV) == (128, 256):
            assert -(-columns[use] // walk.blocks) == (64 if sm == 86 else 128), use
        assert walk.shared_kib <= {86: 99, 80: 163, 90: 227}[sm]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_kernels_have_the_same_bits_for_any_chunk_size(dtype, backend):
    """chunk_size is backend cpu's; the kernels' own chunks follow from the head dims (docs/kernels-mlstm.md)."""
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=150, NH=1, dtype=dtype))]
    expected = mlstm(*tensors, backend=backend)
    for chunk_size in functional.CHUNK_SIZES:
        assert torch.equal(mlstm(*tensors, chunk_size=chunk_size, backend=backend), expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mlstm_keeps_its_state_in_float32(dtype, backend):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=130, NH=1, dtype=dtype, gates="i-1e4", state=True))]
    tensors[4].fill_(100.0)
    _, last = mlstm(*tensors[:5], state=tensors[5:], return_state=True, backend=backend)
    assert tolerances.rms_ratio(last.C, tensors[5]) < 1e-6, "nothing is written and nothing forgotten"


def test_mlstm_tiles_are_those_of_the_code():
    """sm_87 runs the code of sm_86, which has no wide tiles, though the device has the shared memory for them."""
    if not (found := xlstm_cuda.backends()["simt"]):
        pytest.skip(found.reason)
    columns = {}
    for sm in (80, 86, 87):
        with simt.options(sm=sm):
            columns[sm] = [simt.module().mlstm_block_columns("h", "bfloat16", 64, c, 256) for c in (128, 256)]
    assert columns == {80: [128, 128], 86: [64, 64], 87: [64, 64]}
