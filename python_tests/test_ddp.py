"""DistributedDataParallel: two gloo processes, half of the batch each, take the steps of one process with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from xlstm_cuda import mLSTMBlockConfig, sLSTMBlockConfig, xLSTMLMModel, xLSTMLMModelConfig

STEPS, BATCH, LENGTH, VOCAB = 3, 4, 20, 30


def train(wrap, rows: slice) -> dict[str, torch.Tensor]:
    """Trains a model with blocks of both kinds on the given rows of the batches; the weights afterwards."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = xLSTMLMModelConfig(
        vocab_size=VOCAB, embedding_dim=32, num_blocks=2, slstm_at=[1],
        mlstm_block=mLSTMBlockConfig(), slstm_block=sLSTMBlockConfig(),
    )  # fmt: skip
    model = xLSTMLMModel(config)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        idx = torch.randint(0, VOCAB, (BATCH, LENGTH))[rows]
        optimizer.zero_grad()
        wrapped(idx).square().mean().backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = BATCH // 2
    weights = train(DistributedDataParallel, slice(rank * half, (rank + 1) * half))
    torch.save(weights, Path(folder) / f"weights_{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo")
def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    expected, half = (train(lambda model: model, rows) for rows in (slice(None), slice(0, BATCH // 2)))
    first, second = (torch.load(tmp_path / f"weights_{rank}.pt", weights_only=True) for rank in range(2))
    for name, weight in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.allclose(half[name], expected[name]) for name in half)  # the other process's half did count
