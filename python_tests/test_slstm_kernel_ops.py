"""The sLSTM kernels inside PyTorch: ops, compile, autograd's rules; and inside layers, blocks and models."""

from __future__ import annotations

import contextlib
import functools

import pytest
import tolerances
import torch
from backend_fixture import KERNELS, backend_fixture
from slstm_cases import assert_same_gradients, device_of, make_case, official_vanilla, run

import xlstm_cuda
from xlstm_cuda import functional
from xlstm_cuda.ops import slstm_kernels

backend = backend_fixture(KERNELS)


def op_arguments(backend: str, dtype: torch.dtype, DH: int = 8, packed: bool = False, **changes) -> dict:
    case = (make_case(1, 7, 2, DH, rows=2) if packed else make_case(2, 5, 2, DH)).to(dtype).on(device_of(backend))
    arguments = dict(
        x=case.x, R=case.R, b=case.b, h0=None, c0=None, n0=None, m0=None, reset=None, cu_seqlens=None,
        forget_gate="sigmoid", save=True, backend=backend,
    )  # fmt: skip
    if packed or changes.pop("state", False):
        arguments |= dict(zip(("h0", "c0", "n0", "m0"), case.state))
    if packed:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 7], dtype=torch.int32, device=case.x.device)
    return arguments | changes


CASES = {
    "bfloat16": dict(dtype=torch.bfloat16),
    "float16": dict(dtype=torch.float16, b=None, forget_gate="exp"),
    "float32": dict(dtype=torch.float32),
    "padded": dict(dtype=torch.bfloat16, DH=6),
    "state": dict(dtype=torch.bfloat16, state=True),
    "nothing saved": dict(dtype=torch.bfloat16, save=False),
    "packed": dict(dtype=torch.float32, packed=True),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, backend):
    arguments = op_arguments(backend, **CASES[name])
    torch.library.opcheck(torch.ops.xlstm_cuda.slstm_forward.default, tuple(arguments.values()))
    if not arguments["save"]:
        return
    h, *last, tails, cells = torch.ops.xlstm_cuda.slstm_forward(*arguments.values())
    a = arguments
    saved = (a["R"], a["h0"], a["c0"], a["n0"], a["reset"], a["cu_seqlens"], tails, cells, h, a["forget_gate"], backend)
    incoming = (torch.randn_like(h), None, *(torch.randn_like(s) for s in last[1:3]))
    torch.library.opcheck(torch.ops.xlstm_cuda.slstm_backward.default, (*incoming, *saved))


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    """Of a backend that torch.compile can trace; the executor is a test instrument and is not among them."""
    found = xlstm_cuda.backends()[request.param]
    if not found:
        pytest.skip(found.reason)
    return request.param


@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_compiles_into_one_graph_forward_and_backward(checkpoint_every, device):
    def call(x, R, b, h0, c0, n0, m0):
        h, last = functional.slstm(x.tanh(), R, b, state=(h0, c0, n0, m0), return_state=True, checkpoint_every=checkpoint_every)
        return (h * 2).sum() + last.c.sum() + (last.n * last.h).sum()

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True)
    case = make_case(2, 5, 2, 8).to(torch.float32).on(device)
    assert_same_gradients(compiled, call, case)


def test_step_compiles_into_one_graph(device):
    case = make_case(2, 1, 2, 8).to(torch.float32).on(device)

    def call(x, R, b, *state):
        h, last = functional.slstm_step(x * 2, R, b, state)
        return h + 1, last

    torch._dynamo.reset()
    arguments = (case.x[:, 0], case.R, case.b, *case.state)
    with torch.no_grad():
        (h, last), (h_, last_) = call(*arguments), torch.compile(call, fullgraph=True)(*arguments)
    torch.testing.assert_close((h, *last), (h_, *last_))


@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_double_backward_raises(checkpoint_every, backend):
    case = make_case(2, 5, 2, 8).to(torch.bfloat16).on(device_of(backend))
    x = case.x.requires_grad_()
    h = functional.slstm(x, case.R, case.b, checkpoint_every=checkpoint_every, backend=backend)
    (dx,) = torch.autograd.grad(h.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_autocast_takes_float32_weights(backend):
    case = make_case(2, 5, 2, 8).to(torch.float32).on(device_of(backend))
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b)]
    with torch.autocast(device_of(backend), dtype=torch.bfloat16):
        h = functional.slstm(*leaves, backend=backend)
    assert h.dtype == torch.bfloat16
    for leaf, gradient in zip(leaves, torch.autograd.grad(h.sum(), leaves)):
        assert gradient.dtype == leaf.dtype == torch.float32


@pytest.mark.parametrize("cell", ["slstm", "slstm grid", "mlstm"])
def test_borders_outside_the_steps_count_as_the_nearest(cell, backend, monkeypatch):
    """Their values are checked on CPU tensors only; on a GPU nothing outside the operands may be touched."""
    monkeypatch.setattr(functional.checks, "cu_seqlens", lambda value, *_: value.shape[0] - 1)
    S, device = 9, device_of(backend)
    generator = torch.Generator().manual_seed(0)

    def operands(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]

    if cell == "mlstm":
        tensors = operands((1, S, 2, 16), (1, S, 2, 16), (1, S, 2, 16), (1, S, 2), (1, S, 2))
        call = functools.partial(functional.mlstm, *tensors)
    else:
        tensors = operands((1, S, 4, 2, 16), (4, 2, 16, 16))
        call = functools.partial(functional.slstm, *tensors)

    def results(borders: list[int]) -> tuple[torch.Tensor, ...]:
        h, last = call(return_state=True, cu_seqlens=torch.tensor(borders, dtype=torch.int32).to(device), backend=backend)
        return h, *last, *torch.autograd.grad((h.sum() + last[1].sum()), tensors)

    with slstm_kernels.forced_kernel("grid") if "grid" in cell else contextlib.nullcontext():
        for one, other in zip(results([-3, 4, 4, S + 5]), results([0, 4, 4, S]), strict=True):
            assert torch.equal(one, other)


# ---- which kernel serves


@pytest.mark.parametrize(
    ("dtype", "DH", "sm", "kernel"),
    [
        ("bfloat16", 8, 80, "resident"), ("float16", 128, 86, "resident"), ("bfloat16", 136, 90, "cluster"),
        ("bfloat16", 136, 89, "grid"), ("bfloat16", 768, 90, "cluster"), ("bfloat16", 776, 90, "grid"),
        ("float32", 64, 86, "resident"), ("float32", 72, 86, "grid"), ("float32", 96, 90, "resident"),
        ("float32", 96, 80, "grid"), ("float32", 104, 90, "grid"), ("float32", 768, 80, "grid"),
        ("float32", 1024, 90, "grid"),
    ],
)  # fmt: skip
def test_the_table_chooses_by_head_dim_dtype_and_device(dtype, DH, sm, kernel):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    with xlstm_cuda.simt.options(sm=sm):
        assert xlstm_cuda.simt.module().slstm_kernel(dtype, DH) == kernel


@pytest.mark.parametrize(
    ("DH", "largest_cluster", "kernel"),
    [(768, 16, "cluster"), (768, 15, "grid"), (384, 8, "cluster"), (392, 8, "grid"), (136, 8, "cluster"), (136, 2, "grid")],
)
def test_clusters_are_chosen_where_the_device_holds_them(DH, largest_cluster, kernel):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    with xlstm_cuda.simt.options(largest_cluster=largest_cluster):
        assert xlstm_cuda.simt.module().slstm_kernel("bfloat16", DH) == kernel


@pytest.mark.parametrize(("sm", "largest", "kilobytes"), [(80, 768, 163), (86, 512, 99)])
def test_the_table_says_where_float32_ends(sm, largest, kilobytes):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    expected = f"got 1024, expected 1 to {largest} in float32 on sm_{sm} with {kilobytes} KB"
    with xlstm_cuda.simt.options(sm=sm), pytest.raises(ValueError, match=expected):
        xlstm_cuda.simt.module().slstm_kernel("float32", 1024)


def test_the_table_ends_at_head_dim_1024(backend):
    """In 16 bits, on every GPU; where float32 ends depends on its shared memory, see above."""
    x, R = torch.zeros(1, 1, 4, 1, 1032, dtype=torch.bfloat16), torch.zeros(4, 1, 1032, 1032, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="slstm: DH: got 1032, expected 1 to 1024"):
        functional.slstm(x.to(device_of(backend)), R.to(device_of(backend)), backend=backend)


def test_a_forced_kernel_must_exist():
    with pytest.raises(ValueError, match="kernel: got 'fast', expected one of 'resident', 'cluster', 'grid'"):
        with slstm_kernels.forced_kernel("fast"):
            pass


def test_a_forced_kernel_refuses_a_head_dim_it_does_not_hold(backend):
    case = make_case(1, 2, 1, 136)
    with slstm_kernels.forced_kernel("resident"), pytest.raises(ValueError, match="slstm resident kernel: DH: got 136"):
        run(case, backend, torch.bfloat16)


@pytest.mark.parametrize("sm", [80, 86, 89])
def test_resident_kernels_fit_the_smaller_gpus(sm):
    if not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    with xlstm_cuda.simt.options(sm=sm):
        run(make_case(1, 3, 1, 128), "simt", torch.bfloat16)
        run(make_case(1, 3, 1, 64), "simt", torch.float32)


# ---- layers, blocks, models


def test_slstm_layer_equals_the_cpu_backend(backend, monkeypatch):
    torch.manual_seed(0)
    layer = xlstm_cuda.sLSTM(12, 16, num_layers=2, num_heads=2, bidirectional=True, batch_first=True)
    x = torch.randn(3, 9, 12)
    parameters = list(layer.parameters())

    def results() -> list[torch.Tensor]:
        out, state = layer(x)
        return [out, *state[:3], *torch.autograd.grad(out.square().sum() + state.c.sum(), parameters)]

    expected = results()
    if backend == "cuda":
        layer.cuda()
        x, parameters = x.cuda(), list(layer.parameters())
    monkeypatch.setattr(functional, "resolve", lambda name, device: name or backend)
    for got, true in zip(results(), expected):
        assert tolerances.rms_ratio(got.cpu(), true) <= 3e-5


@pytest.mark.parametrize("context", [40, 13])
def test_language_model_of_both_blocks_trains_a_step_on_the_kernels(context, backend):
    """xLSTM[1:1]: an mLSTM block and an sLSTM block, loss, gradients and one step of the optimiser, as on the reference."""
    mlstm = xlstm_cuda.mLSTMBlockConfig(
        mlstm=xlstm_cuda.mLSTMLayerConfig(num_heads=2, conv1d_kernel_size=4, qkv_proj_blocksize=4)
    )
    slstm = xlstm_cuda.sLSTMBlockConfig(slstm=xlstm_cuda.sLSTMLayerConfig(num_heads=2, conv1d_kernel_size=4))
    config = xlstm_cuda.xLSTMLMModelConfig(
        vocab_size=11, embedding_dim=32, num_blocks=2, context_length=64, mlstm_block=mlstm, slstm_block=slstm, slstm_at=[1]
    )
    tokens = torch.randint(11, (2, context + 1))

    def train_one_step(backend: str, device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = xlstm_cuda.xLSTMLMModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith("_recurrent_kernel_"):
                torch.nn.init.normal_(parameter, std=0.2)  # the official start is 0, which would hide R
        model.to(device)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        logits = model(tokens[:, :-1].to(device), backend=backend)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten().to(device))
        loss.backward()
        gradients = {name: p.grad.detach().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        assert any(name.endswith("_recurrent_kernel_") and g.any() for name, g in gradients.items())
        optimiser.step()
        return [loss.detach().cpu(), *gradients.values(), *(p.detach().cpu() for p in model.parameters())]

    for got, true in zip(train_one_step(backend, device_of(backend)), train_one_step("reference", "cpu")):
        assert tolerances.rms_ratio(got, true) <= 1e-4


# ---- implementations that are not ours (research notes: they branch on n = 0 per batch, so states are all fresh here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slstm_equals_flashrnn_vanilla(dtype, backend):
    flashrnn = pytest.importorskip("flashrnn", reason="peer flashrnn is not installed (requirements-peers.txt)")
    case = make_case(2, 9, 3, 16, state=False)
    case.R *= 0.5
    got = run(case, backend, dtype)
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b)]
    start = torch.zeros(4, 2, 1, 3, 16, dtype=torch.float64)
    states, _ = flashrnn.flashrnn(*leaves, states=start, function="slstm", backend="vanilla", dtype="float32")
    for name, theirs in zip(("h_last", "c_last", "n_last", "m_last"), states):
        assert tolerances.rms_ratio(got[name], theirs[:, -1]) <= tolerances.SLSTM_H[dtype], name
    assert tolerances.rms_ratio(got["h"], states[0]) <= tolerances.SLSTM_H[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slstm_equals_the_official_vanilla_function(dtype, backend):
    case = make_case(2, 9, 3, 16, state=False)
    case.R *= 0.5
    case.dstate = tuple(torch.zeros_like(d) for d in case.dstate)
    got = run(case, backend, dtype)
    leaves = [t.requires_grad_() for t in (case.x, case.R, case.b)]
    h = official_vanilla(*leaves)
    assert tolerances.rms_ratio(got["h"], h) <= tolerances.SLSTM_H[dtype]
    for name, theirs in zip(("dx", "dR", "db"), torch.autograd.grad((h * case.dh).sum(), leaves)):
        assert tolerances.rms_ratio(got[name], theirs) <= tolerances.SLSTM_GRAD[dtype], name
