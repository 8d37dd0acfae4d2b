"""Bitwise stability: the results and gradients of every kernel under the executor are those that were recorded."""

from __future__ import annotations

import json

import digests
import pytest
import torch

from xlstm_cuda import backends, simt


def test_kernels_under_the_executor_have_the_recorded_bits():
    if not (found := backends()["simt"]):
        pytest.skip(found.reason)
    lines = digests.differences(digests.recordable(digests.digests("simt")), json.loads(digests.RECORDED.read_text()))
    assert not lines, (
        "other bits than recorded; where a change of the arithmetic is meant, run `python python_tests/digests.py simt --record`"
        " and say in the commit what changed:\n" + "\n".join(lines)
    )


def test_a_difference_of_one_bit_is_named():
    name, run = next(iter(digests.grid("cpu")))
    results = run()
    before = {name: {k: digests.digest(x) for k, x in results.items()}}
    with torch.no_grad():
        results["C"].view(torch.int32).view(-1)[3] ^= 1
    after = {name: {k: digests.digest(x) for k, x in results.items()}}
    assert digests.differences(after, before) == [f"{name}: C"]
    assert digests.differences({}, before) == [f"{name}: only before"]


def test_digests_do_not_depend_on_the_schedule():
    if not (found := backends()["simt"]):
        pytest.skip(found.reason)
    runs = [run for name, run in digests.grid("simt") if "kernel='cluster'" not in name][:4]
    first = [{k: digests.digest(x) for k, x in run().items()} for run in runs]
    with simt.options(order="lifo", landing="early"):
        assert [{k: digests.digest(x) for k, x in run().items()} for run in runs] == first
