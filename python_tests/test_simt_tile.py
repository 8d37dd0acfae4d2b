"""A small tensor-core kernel (csrc/simt/selftest/mlstm_tile.cu) in the executor: right, and the same under every schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from simt_backends import BACKENDS, skip_unless_usable
from torch.nn.functional import logsigmoid

from xlstm_cuda import native, simt

D = 64


@pytest.fixture(params=BACKENDS)
def backend(request):
    skip_unless_usable(request.param)
    return request.param


def operands(BH, S, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(BH, S, D, generator=generator).bfloat16() for _ in range(3))
    F = logsigmoid(3 + torch.randn(BH, S, generator=generator)).cumsum(1)
    return q, k, v, F, torch.randn(BH, S, generator=generator)


def run(tensors, backend="simt"):
    tensors = [x.to("cuda" if backend == "cuda" else "cpu") for x in tensors]
    q, k, v, F, I = tensors
    BH, S, _ = q.shape
    h, m = torch.full_like(q, torch.nan, dtype=torch.float32), torch.full_like(F, torch.nan)
    module = native._C if backend == "cuda" else simt.module()
    stream = torch.cuda.current_stream().cuda_stream if backend == "cuda" else 0
    module.mlstm_tile(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), F=F.data_ptr(), I=I.data_ptr(), h=h.data_ptr(), m=m.data_ptr(),
        BH=BH, S=S, stream=stream,
    )  # fmt: skip
    return h.cpu(), m.cpu()


def truth(q, k, v, F, I):
    q, k, v, F, I = (x.double() for x in (q, k, v, F, I))
    log_weight = F.unsqueeze(2) - F.unsqueeze(1) + I.unsqueeze(1)
    log_weight = log_weight.masked_fill(torch.ones(F.shape[1], F.shape[1], dtype=torch.bool).triu(1), -torch.inf)
    m = log_weight.amax(-1)
    P = q @ k.transpose(1, 2) / 8 * torch.exp(log_weight - m.unsqueeze(-1))
    return P @ v / torch.maximum(P.sum(-1).abs(), torch.exp(-m)).unsqueeze(-1), m


def check(tensors, backend="simt"):
    (h, m), (h_true, m_true) = run(tensors, backend), truth(*tensors)
    row_error = (h - h_true).abs().amax(-1) / (h_true.abs().amax(-1) + 1e-3)
    assert row_error.max() < 2e-2 and (m - m_true).abs().max() < 1e-3


@pytest.mark.parametrize("S", [1, 16, 33, 64, 65, 129, 200])
def test_tile_equals_float64(S, backend):
    check(operands(2, S), backend)


def test_forty_random_schedules_give_the_same_bits():
    skip_unless_usable("simt")
    tensors = operands(1, 130)
    with simt.options(order="fifo"):
        expected = run(tensors)
    for seed in range(40):
        with simt.options(order="random", seed=seed, landing="random"):
            assert all(torch.equal(a, b) for a, b in zip(run(tensors), expected)), seed


@pytest.mark.parametrize("order", simt.ORDERS)
def test_tile_has_no_race(order):
    skip_unless_usable("simt")
    with simt.options(races=True, order=order):
        check(operands(2, 130))


def test_profile_counts_the_instructions_of_the_tile():
    skip_unless_usable("simt")
    with simt.profile() as launches:
        run(operands(1, 64))
    (launch,) = launches
    # 4 warps; scores 64 x 64 x 64 and values the same: 4 x 8 x 4 products each
    assert launch["mma"] == 4 * 2 * 4 * 8 and launch["ldmatrix"] == 4 * (4 * (1 + 4) + 4 * 4)
    assert launch["block_barriers"] == 2 and launch["bank_conflict_factor"] < 1.3
    matrix_lines = [line for line in launch["lines"] if line["space"] == "shared" and line["requests"] == 64]
    assert matrix_lines and all(line["ratio"] == 1.0 for line in matrix_lines)
    assert launch["global_bytes_written"] == 64 * D * 4 + 64 * 4


@pytest.mark.deep
def test_three_hundred_cases():
    """300 launches in a few seconds on one core: run with --durations=1."""
    skip_unless_usable("simt")
    shapes = itertools.cycle(itertools.product([1, 2, 3, 4], [1, 16, 33, 64, 65, 100, 128, 192, 256]))
    for index, (BH, S) in enumerate(itertools.islice(shapes, 300)):
        with simt.options(order=simt.ORDERS[index % 4], seed=index):
            check(operands(BH, S, seed=index))
