"""A small attack (python_tests/attack) by default, and what larger ones have found, each as a test of its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import mlstm_cases
import pytest
import slstm_cases
import torch
from backend_fixture import KERNELS, backend_fixture
from mlstm_cases import Case
from simt_backends import skip_unless_usable

from xlstm_cuda import functional

ATTACK = Path(__file__).parent / "attack"


backend = backend_fixture(KERNELS)


def test_attack_of_300_random_cases_finds_nothing_new():
    skip_unless_usable("simt")
    command = [sys.executable, str(ATTACK), "--cases", "300", "--seed", "12", "--minutes", "5"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


def test_attack_runs_one_case_again_alone():
    skip_unless_usable("simt")
    command = [sys.executable, str(ATTACK), "--seed", "12", "--only", "5"]
    once, twice = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert once == twice and "of its allowance" in once


def like_an_image(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory whose second axis is the densest: torch takes that for a batch of images, channels last."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("DHQK,DHHV", [(9, 3), (7, 20), (16, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mlstm_reads_operands_that_look_like_images(DHQK, DHHV, dtype, backend):
    """Padding a head dim that is no multiple of 8 must not keep their order in memory."""
    device = mlstm_cases.device_of(backend)
    tensors = [x.detach().to(device) for x in mlstm_cases.inputs(Case(S=8, DHQK=DHQK, DHHV=DHHV, dtype=dtype))]
    views = [like_an_image(x).requires_grad_() for x in tensors]
    tensors = [x.requires_grad_() for x in tensors]
    h, seen = (functional.mlstm(*xs, backend=backend) for xs in (tensors, views))
    assert torch.equal(h, seen)
    dh = torch.randn(h.shape, dtype=torch.float64).to(device, dtype)
    grads, others = torch.autograd.grad(h, tensors, dh), torch.autograd.grad(seen, views, like_an_image(dh))
    assert all(torch.equal(a, b) for a, b in zip(grads, others))


@pytest.mark.parametrize("DH", [3, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slstm_reads_operands_that_look_like_images(DH, dtype, backend):
    case = slstm_cases.make_case(2, 5, 2, DH)
    true = slstm_cases.run(case, backend, dtype)
    case.x, case.R, case.dh = (like_an_image(t) for t in (case.x, case.R, case.dh))
    case.b = None if case.b is None else case.b.transpose(0, 1).contiguous().transpose(0, 1)
    got = slstm_cases.run(case, backend, dtype)
    assert all(torch.equal(got[name], true[name]) for name in true)


def test_attack_notices_two_percent_in_any_result(monkeypatch):
    """Every result and gradient of a backend that is right, made 2% larger, is over its allowance in some of few cases."""
    monkeypatch.syspath_prepend(str(ATTACK))
    cases, compare = importlib.import_module("cases"), importlib.import_module("compare")
    run, missed = compare.run, set()
    found: set[tuple[str, str]] = set()
    for index in range(60):
        case = cases.draw(5, index, ("reference",))
        got = run(case)
        for name in got:
            wrong = {other: x * 1.02 if other == name else x for other, x in got.items()}
            monkeypatch.setattr(compare, "run", lambda case, wrong=wrong: wrong)
            kind = case.op.removesuffix("_step")
            (found if name in compare.judge(case).failures else missed).add((kind, name))
    assert not missed - found
    assert len(found) >= 8 + 4 + 5 + 7
