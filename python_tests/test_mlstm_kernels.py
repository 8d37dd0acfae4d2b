"""What only the kernels of csrc/mlstm have: tiles, segments, schedules; what a launch did (tensor cores, bytes, conflicts)."""

from __future__ import annotations

import mlstm_cases
import pytest
import tolerances
import torch
from mlstm_cases import KERNELS, Case, mlstm
from simt_backends import skip_unless_traced

import xlstm_cuda
from xlstm_cuda import simt
from xlstm_cuda.ops import mlstm_kernels

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=KERNELS)
def backend(request) -> str:
    found = xlstm_cuda.backends()[request.param]
    if not found:
        pytest.skip(found.reason)
    return request.param


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
        error = tolerances.rms_ratio(value, true[name], true.get(f"{name} terms"))
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


# One head dim per tile in either role: DHQK contracts in H and dV, DHHV in dQ and dK.
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(64, 128), (256, 72), (264, 64), (136, 512)])
def test_mlstm_every_tile_matches_reference(DHQK, DHHV, dtype, backend):
    check(Case(B=1, S=135, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True, options={"eps": 0.0}), backend)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("DHQK", [16, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("DHHV", [16, 64, 128, 200, 256, 512])
def test_mlstm_every_pair_of_tiles_matches_reference(DHQK, DHHV, dtype, backend):
    check(Case(B=1, S=200, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True, options={"eps": 0.0}), backend)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [None, (70, 0, 1, 140)], ids=str)
def test_mlstm_has_the_same_bits_for_any_number_of_segments(lengths, dtype, backend):
    case = Case(B=1, S=211, NH=2, DHQK=24, DHHV=72, dtype=dtype, state=True, lengths=lengths)
    tensors = mlstm_cases.inputs(case)
    with mlstm_kernels.forced_segments(1):
        whole = mlstm_cases.run(case, tensors, backend)
    for count in (2, 3, 9):
        with mlstm_kernels.forced_segments(count):
            pieces = mlstm_cases.run(case, tensors, backend)
        for name in whole:
            assert torch.equal(whole[name], pieces[name]), f"{count} segments: {name}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["fifo", "reverse", "lifo"])
def test_mlstm_has_the_same_bits_with_any_schedule(order, dtype):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    case = Case(B=1, S=130, NH=1, DHQK=24, DHHV=72, dtype=dtype, state=True)
    tensors = mlstm_cases.inputs(case)
    once = mlstm_cases.run(case, tensors, "simt")
    with simt.options(order=order, landing="early"):
        again = mlstm_cases.run(case, tensors, "simt")
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("DHQK,DHHV", [(64, 128), (256, 40), (512, 64)])
def test_mlstm_kernels_have_no_data_race(DHQK, DHHV, dtype, traced):
    case = Case(B=1, S=150, NH=1, DHQK=DHQK, DHHV=DHHV, dtype=dtype, state=True)
    with simt.options(races=True), mlstm_kernels.forced_segments(2):
        mlstm_cases.run(case, mlstm_cases.inputs(case), traced)


def test_mlstm_head_dim_that_no_tile_holds_raises_with_the_table(backend):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=2, NH=1, DHQK=520, DHHV=8, dtype=torch.float32))]
    with pytest.raises(ValueError, match=f"mlstm on {backend}: DHQK: got 520, expected 1 to 512.*64, 128, 256 and 512"):
        mlstm(*tensors, backend=backend)


@pytest.fixture(scope="module")
def walks() -> dict[str, dict]:
    """What the walks of one forward and backward at head dims 128 / 256 did, by name."""
    skip_unless_traced()
    torch.manual_seed(0)
    case = Case(B=1, S=256, NH=1, DHQK=128, DHHV=256, dtype=torch.bfloat16)
    with simt.profile() as launches:
        mlstm_cases.run(case, mlstm_cases.inputs(case), "simt", loss_on_state=False)
    return {launch["kernel"]: launch for launch in launches}


USES = {"h": (128, 256), "dq": (256, 128), "dk": (256, 128), "dv": (128, 256)}  # c, o


@pytest.mark.parametrize("use", USES)
def test_mlstm_walk_uses_tensor_cores_without_bank_conflicts(use, walks):
    walk = walks[f"mlstm_walk_{use}<bfloat16>"]
    assert walk["mma"] > 0 and walk["ldmatrix"] > 0
    # Reads of two neighbours of the record, the same for eight lanes, count as two wavefronts for 32 bytes: they are left out.
    wide = [line for line in walk["lines"] if line["space"] == "shared" and line["bytes"] >= 512 * line["requests"]]
    factor = sum(line["wavefronts"] for line in wide) / sum(line["bytes"] / 128 for line in wide)
    assert wide and factor <= 1.05, factor
    assert walk["bank_conflict_factor"] <= 1.1, walk["bank_conflict_factor"]
    assert walk["sector_factor"] <= 1.1, walk["sector_factor"]


@pytest.mark.parametrize("use", USES)
def test_mlstm_walk_moves_the_fewest_bytes(use, walks):
    """A, B, X in and O out once, with A and B once for every block of 64 columns of O; dQ and dK read q and k for their row dots.

    The state is left out: it is read and written once per sequence, whatever S is.
    """
    walk, S, (c, o) = walks[f"mlstm_walk_{use}<bfloat16>"], 256, USES[use]
    blocks = -(-o // 64)
    dots = 2 * o * S if use in ("dq", "dk") else 0
    least = 2 * S * (2 * c * blocks + 2 * o) + dots
    state = 4 * 128 * 256 * (1 if use in ("h", "dk") else 0)
    moved = walk["global_bytes_read"] + walk["global_bytes_written"] - state
    assert moved <= 1.10 * least, f"{moved / least:.3f} times the least"


def test_language_model_of_mlstm_blocks_runs_forward_and_backward_on_the_kernels(backend):
    layer = xlstm_cuda.mLSTMLayerConfig(num_heads=2, conv1d_kernel_size=4, qkv_proj_blocksize=4)
    config = xlstm_cuda.xLSTMLMModelConfig(
        vocab_size=11, embedding_dim=32, num_blocks=2, context_length=64, mlstm_block=xlstm_cuda.mLSTMBlockConfig(mlstm=layer)
    )
    model, device = xlstm_cuda.xLSTMLMModel(config), mlstm_cases.device_of(backend)
    tokens = torch.randint(11, (2, 40))

    def loss_and_gradients(backend: str, device: str) -> list[torch.Tensor]:
        model.to(device)
        logits = model(tokens.to(device), backend=backend)
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()), allow_unused=True)
        return [logits.detach().cpu(), *(g.cpu() for g in gradients if g is not None)]

    expected = loss_and_gradients("cpu", "cpu")
    for a, b in zip(loss_and_gradients(backend, device), expected):
        assert tolerances.rms_ratio(a, b) <= 1e-4


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mlstm_keeps_its_state_in_float32(dtype, backend):
    tensors = [x.detach() for x in mlstm_cases.inputs(Case(B=1, S=130, NH=1, dtype=dtype, gates="i-1e4", state=True))]
    tensors[4].fill_(100.0)
    _, last = mlstm(*tensors[:5], state=tensors[5:], return_state=True, backend=backend)
    assert tolerances.rms_ratio(last.C, tensors[5]) < 1e-6, "nothing is written and nothing forgotten"
