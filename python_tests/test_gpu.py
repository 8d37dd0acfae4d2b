"""What only a device can show: the same bits every time, CUDA graphs, side streams, tensors with more than 2^31 elements."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import xlstm_cuda
from xlstm_cuda import functional

BACKEND = xlstm_cuda.backends()["cuda"]
pytestmark = pytest.mark.skipif(not BACKEND, reason=f"backend cuda: {BACKEND.reason}")

REPEATS = int(os.environ.get("XLSTM_TEST_REPEATS", "1000"))


def mlstm_operands(B=2, S=257, NH=2, DHQK=64, DHHV=128, dtype=torch.bfloat16) -> list[Tensor]:
    shapes = [(B, S, NH, DHQK), (B, S, NH, DHQK), (B, S, NH, DHHV), (B, S, NH), (B, S, NH)]
    return [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]


def slstm_operands(B=4, S=65, NH=2, DH=64, dtype=torch.bfloat16) -> list[Tensor]:
    x = torch.randn(B, S, 4, NH, DH, device="cuda", dtype=dtype)
    R, b = torch.randn(4, NH, DH, DH, device="cuda") / DH**0.5, torch.randn(4, NH, DH, device="cuda")
    return [x.requires_grad_(), R.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()]


def mlstm(*tensors: Tensor) -> Tensor:
    return functional.mlstm(*tensors)


def slstm(*tensors: Tensor) -> Tensor:
    return functional.slstm(*tensors)


@pytest.fixture(params=["mlstm", "slstm"])
def call(request) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A functional call and its operands, big enough for every kernel to have several blocks."""
    function, tensors = {"mlstm": (mlstm, mlstm_operands), "slstm": (slstm, slstm_operands)}[request.param]
    operands = tensors()
    try:
        function(*operands)
    except RuntimeError as error:
        if "no sLSTM kernels" in str(error):
            pytest.skip(str(error))
        raise
    return function, operands


def forward_and_backward(function: Callable[..., Tensor], operands: list[Tensor]) -> tuple[Tensor, ...]:
    h = function(*operands)
    return h, *torch.autograd.grad(h, operands, torch.ones_like(h))


def test_the_same_input_gives_the_same_bits(call):
    first = forward_and_backward(*call)
    for _ in range(REPEATS - 1):
        for got, expected in zip(forward_and_backward(*call), first):
            assert torch.equal(got, expected)


def test_a_cuda_graph_replays_the_call_on_new_inputs(call):
    function, operands = call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward(function, operands)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(function, operands)
    with torch.no_grad():
        for operand in operands:
            operand.copy_(torch.randn_like(operand) / operand.shape[-1] ** 0.5)
    graph.replay()
    for got, expected in zip(captured, forward_and_backward(function, operands)):
        assert torch.equal(got, expected)


def test_a_cuda_graph_replays_a_decode_step():
    q, k, v, i, f = (x.detach()[:, 0].contiguous() for x in mlstm_operands())
    state = [torch.zeros(2, 2, 64, 128, device="cuda"), torch.zeros(2, 2, 64, device="cuda"), torch.zeros(2, 2, device="cuda")]
    with torch.no_grad():
        functional.mlstm_step(q, k, v, i, f, state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            h, last = functional.mlstm_step(q, k, v, i, f, state)
        for part in state:
            part.normal_()
        graph.replay()
        expected, expected_last = functional.mlstm_step(q, k, v, i, f, state)
    assert torch.equal(h, expected)
    assert all(torch.equal(a, b) for a, b in zip(last, expected_last))


def test_a_call_runs_on_the_current_stream(call):
    """The inputs are written late, on a side stream: a launch on any other stream would read what was there before."""
    function, operands = call
    true = forward_and_backward(function, operands)
    late = [torch.full_like(x, float("nan")) for x in operands]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for target, source in zip(late, operands):
                target.copy_(source)
        got = forward_and_backward(function, [x.requires_grad_() for x in late])
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, true))


def test_two_streams_at_once_do_not_disturb_each_other(call):
    function, operands = call
    true = forward_and_backward(function, operands)
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(forward_and_backward(function, operands))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, true))


def needs_gib(gib: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib << 30:
        pytest.skip(f"needs {gib} GiB of free GPU memory, {free >> 30} are free")


def test_mlstm_with_more_than_2_31_elements_reads_the_last_rows():
    needs_gib(40)
    B, S, NH, D = 33, 8192, 16, 512  # v has 2.2e9 elements
    q, k = (torch.randn(B, S, NH, 16, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    v = torch.empty(B, S, NH, D, device="cuda", dtype=torch.bfloat16)
    v[:-1].fill_(0.5)
    v[-1].normal_()
    i, f = (torch.randn(B, S, NH, device="cuda") for _ in range(2))
    with torch.no_grad():
        h = functional.mlstm(q, k, v, i, f)[-1]
        alone = functional.mlstm(*(x[-1:].clone() for x in (q, k, v, i, f)))[0]
    assert torch.equal(h, alone)


def test_slstm_with_more_than_2_31_elements_reads_the_last_rows():
    needs_gib(30)
    B, S, NH, DH = 130, 16384, 4, 64  # x has 2.18e9 elements
    x = torch.empty(B, S, 4, NH, DH, device="cuda", dtype=torch.bfloat16)
    x[:-1].zero_()
    x[-1].normal_()
    R = (torch.randn(4, NH, DH, DH, device="cuda") / DH**0.5).bfloat16()
    with torch.no_grad():
        try:
            h = functional.slstm(x, R)[-1]
        except RuntimeError as error:
            if "no sLSTM kernels" in str(error):
                pytest.skip(str(error))
            raise
        alone = functional.slstm(x[-1:].clone(), R)[0]
    assert torch.equal(h, alone)
