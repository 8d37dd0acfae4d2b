"""What only a device can show: the same bits every time, CUDA graphs, side streams, tensors with more than 2^31 elements, memory.

With XLSTM_PLAYED_GPU (played_gpu.py) the same functions run small on the host executor: they show that the tests themselves are
right, and what a capture forbids.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import xlstm_cuda
from xlstm_cuda import (
    functional,
    generation,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    states,
    xLSTMLarge,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm_cuda.ops.slstm_kernels import forced_kernel

BACKEND = xlstm_cuda.backends()["cuda"]
pytestmark = pytest.mark.skipif(not BACKEND, reason=f"backend cuda: {BACKEND.reason}")

PLAYED = bool(os.environ.get("XLSTM_PLAYED_GPU"))
REPEATS = 2 if PLAYED else int(os.environ.get("XLSTM_TEST_REPEATS", "200"))


@dataclass(frozen=True)
class Call:
    """A call with everything it takes, big enough for every kernel to have several blocks.

    kernel: of the sLSTM, forced; the table chooses without one. DH 64 is resident, 256 cluster or grid, 1024 grid.
    """

    cell: str
    DH: int
    kernel: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.cell, f"DH{self.DH}", self.kernel)))

    def operands(self, device: str = "cuda") -> list[Tensor]:
        if self.cell == "mlstm":
            B, S, NH, DHQK, DHHV = (1, 70, 1, self.DH, 72) if PLAYED else (2, 257, 2, self.DH, 2 * self.DH)
            shapes = [(B, S, NH, DHQK), (B, S, NH, DHQK), (B, S, NH, DHHV), (B, S, NH), (B, S, NH)]
            return [torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_() for shape in shapes]
        B, S, NH = (2, 2, 1) if PLAYED else (20, 65, 2)
        x = torch.randn(B, S, 4, NH, self.DH, device=device, dtype=torch.bfloat16)
        R = torch.randn(4, NH, self.DH, self.DH, device=device) / (2 * self.DH**0.5)
        b = torch.randn(4, NH, self.DH, device=device)
        return [x.requires_grad_(), R.bfloat16().requires_grad_(), b.bfloat16().requires_grad_()]

    def forward(self, operands: list[Tensor]) -> Tensor:
        with forced_kernel(self.kernel) if self.kernel else contextlib.nullcontext():
            return getattr(functional, self.cell)(*operands)

    def __call__(self, operands: list[Tensor]) -> tuple[Tensor, ...]:
        """h and the gradients of its sum."""
        with forced_kernel(self.kernel) if self.kernel else contextlib.nullcontext():
            h = self.forward(operands)
            return h.detach(), *torch.autograd.grad(h, operands, torch.ones_like(h))


CALLS = [Call("mlstm", 64), *(Call("slstm", DH) for DH in (64, 256, 1024)), Call("slstm", 256, "grid")]


@pytest.fixture(params=CALLS, ids=str)
def call(request) -> Call:
    if PLAYED and request.param.DH == 1024:
        pytest.skip("head dim 1024 takes minutes on the host executor; the same kernel is played at 256")
    return request.param


def equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected))


def test_the_same_input_gives_the_same_bits(call):
    operands = call.operands()
    first = call(operands)
    assert all(x.isfinite().all() for x in first)
    for repeat in range(REPEATS - 1):
        assert equal(call(operands), first), f"repeat {repeat}"


@contextlib.contextmanager
def captured(call: Callable[[], object]) -> Iterator[torch.cuda.CUDAGraph]:
    """Inside, the current stream is being captured; ``call`` has run on a side stream before, as PyTorch wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph


def test_a_cuda_graph_replays_the_call_on_new_inputs(call):
    operands = call.operands()
    with captured(lambda: call(operands)) as graph:
        results = call(operands)
    for _ in range(2):  # a replay finds the counters and buffers of the one before
        with torch.no_grad():
            for operand in operands:
                operand.copy_(torch.randn_like(operand) / operand.shape[-1] ** 0.5)
        graph.replay()
        assert equal(results, call(operands))


@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
def test_a_cuda_graph_replays_a_decode_step(cell):
    if cell == "mlstm":
        operands = [x.detach()[:, 0].contiguous() for x in Call("mlstm", 64).operands()]
        B, NH, D = operands[2].shape
        state = [torch.randn(shape, device="cuda") for shape in ((B, NH, 64, D), (B, NH, 64), (B, NH))]
        step = functional.mlstm_step
    else:
        x, *weights = (x.detach() for x in Call("slstm", 64).operands())
        operands = [x[:, 0].contiguous(), *weights]
        state = [torch.rand(x.shape[0], *x.shape[3:], device="cuda") + 1 for _ in range(4)]
        step = functional.slstm_step
    with torch.no_grad():
        with captured(lambda: step(*operands, state)) as graph:
            h, last = step(*operands, state)
        for part in state:
            part.add_(0.5)
        graph.replay()
        expected, expected_last = step(*operands, state)
    assert equal((h, *last), (expected, *expected_last))


@pytest.mark.parametrize("limits", [dict(temperature=0), dict(seed=3, top_p=0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["lm", "large"])
def test_generate_decodes_by_cuda_graphs_as_by_steps(kind, limits):
    """All buckets from 8 rows down to 1, twice by the same graphs, with the weights changed in place in between."""
    width, blocks, vocab = (32, 2, 40) if PLAYED else (256, 4, 1000)
    if kind == "large":
        model = xLSTMLarge(xLSTMLargeConfig(embedding_dim=width, num_heads=2, num_blocks=blocks, vocab_size=vocab))
    else:
        cells = dict(mlstm_block=mLSTMBlockConfig(mLSTMLayerConfig(num_heads=2)), slstm_block=sLSTMBlockConfig())
        model = xLSTMLMModel(xLSTMLMModelConfig(**cells, slstm_at=[1], num_blocks=blocks, embedding_dim=width, vocab_size=vocab))
    model = model.cuda().eval()
    lengths = (3, 1, 9, 2, 4, 7) if PLAYED else (300, 1, 90, 2, 64, 1000)
    prompts = [torch.randint(0, vocab, (length,), device="cuda") for length in lengths]
    options = dict(max_new_tokens=8 if PLAYED else 200, eos=range(vocab // 5), **limits)
    graphs = generation.StepGraphs(model)
    for _ in range(2):
        expected, end = generation.generate(model, prompts, graphs=False, **options)
        new, state = generation.generate(model, prompts, graphs=graphs, **options)
        assert [row.tolist() for row in new] == [row.tolist() for row in expected]
        for (got, _), (true, _) in zip(states.tensors(state), states.tensors(end), strict=True):
            torch.testing.assert_close(got.cpu(), true.cpu(), atol=2e-3, rtol=2e-3)
        with torch.no_grad():
            model.lm_head.weight.neg_()
    if not limits.get("temperature") == 0:
        assert len({len(row) for row in new}) > 1  # some row stopped before another


def test_a_call_runs_on_the_current_stream(call):
    """The inputs are written late, on a side stream: a launch on any other stream would read what was there before."""
    operands = call.operands()
    true = call(operands)
    late = [torch.full_like(x, float("nan")).requires_grad_() for x in operands]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for target, source in zip(late, operands):
                target.copy_(source)
        got = call(late)
    stream.synchronize()
    assert equal(got, true)


def test_two_streams_at_once_do_not_disturb_each_other(call):
    """Two grids whose blocks wait for each other included: each launch is cooperative, so that one waits until the other fits."""
    operands = call.operands()
    true = call(operands)
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(1 if PLAYED else 20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(call(operands))
    torch.cuda.synchronize()
    assert all(equal(result, true) for result in results)


def test_memory_is_freed_after_use(call):
    """Workspaces live as long as a call, saved tensors as long as its graph."""
    operands = call.operands()
    call(operands)  # what is made once: cuBLAS workspaces, loaded modules
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        h = call.forward(operands)
        assert torch.cuda.memory_allocated() > before
        h.float().sum().backward()
        for operand in operands:
            operand.grad = None
        del h
        assert torch.cuda.memory_allocated() == before


def test_a_call_on_the_second_device_stays_there(call):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1):
        pytest.skip("needs two equal GPUs")
    operands = call.operands()
    true = call(operands)
    elsewhere = call([x.detach().to("cuda:1").requires_grad_() for x in operands])  # cuda:0 is still the current device
    assert all(x.device == torch.device("cuda", 1) for x in elsewhere)
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(elsewhere, true))


# ---- more than 2^31 elements: every address is a 64-bit product


def rows_of_mlstm(B: int, S: int, NH: int, DHHV: int) -> tuple[Tensor, Tensor]:
    """h of the last row in a batch, and of that row alone; v (B, S, NH, DHHV)."""
    q, k = (torch.randn(B, S, NH, 16, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    v = torch.empty(B, S, NH, DHHV, device="cuda", dtype=torch.bfloat16)
    v[:-1].fill_(0.5)
    v[-1].normal_()
    i, f = (torch.randn(B, S, NH, device="cuda") for _ in range(2))
    with torch.no_grad():
        h = functional.mlstm(q, k, v, i, f)[-1]
        return h, functional.mlstm(*(x[-1:].clone() for x in (q, k, v, i, f)))[0]


def rows_of_slstm(B: int, S: int, NH: int, DH: int) -> tuple[Tensor, Tensor]:
    """The same; x (B, S, 4, NH, DH)."""
    x = torch.empty(B, S, 4, NH, DH, device="cuda", dtype=torch.bfloat16)
    x[:-1].zero_()
    x[-1].normal_()
    R = (torch.randn(4, NH, DH, DH, device="cuda") / DH**0.5).bfloat16()
    with torch.no_grad():
        h = functional.slstm(x, R)[-1]
        return h, functional.slstm(x[-1:].clone(), R)[0]


LARGE = {
    "mlstm": (rows_of_mlstm, (2, 70, 2, 24) if PLAYED else (33, 8192, 16, 512), 40),  # 2.2e9 elements
    "slstm": (rows_of_slstm, (3, 5, 2, 16) if PLAYED else (130, 16384, 4, 64), 30),  # 2.18e9 elements
}


@pytest.mark.parametrize("cell", LARGE)
def test_the_last_row_of_more_than_2_31_elements_equals_that_row_alone(cell):
    rows, sizes, gib = LARGE[cell]
    free = torch.cuda.mem_get_info()[0]
    if not PLAYED and free < gib << 30:
        pytest.skip(f"needs {gib} GiB of free GPU memory, {free >> 30} are free")
    torch.use_deterministic_algorithms(False)  # no NaN into 20 GiB first: what is not written shows in the comparison
    h, alone = rows(*sizes)
    assert torch.equal(h, alone)
    assert h.isfinite().all() and h.any()
