"""The played GPU goes wrong where a GPU would; and the tests of backend "cuda" are right on an A100, an RTX 4090 and an H100."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slstm_cases import make_case, run

import xlstm_cuda
from xlstm_cuda import functional, native

if not xlstm_cuda.backends()["simt"]:
    pytest.skip(xlstm_cuda.backends()["simt"].reason, allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("a GPU is here, true or played", allow_module_level=True)

import played_gpu
from played_gpu import GPUS, Graph, Played, capture

HERE = Path(__file__).parent


@pytest.fixture
def h100():
    with played_gpu.played(GPUS["H100"]), played_gpu.modes():
        yield


def operands(device: str = "cuda") -> list[torch.Tensor]:
    shapes = [(1, 70, 2, 8)] * 3 + [(1, 70, 2)] * 2
    return [torch.randn(shape).to(device).requires_grad_() for shape in shapes]


def test_kernels_give_the_results_of_backend_simt_bit_by_bit(h100):
    here = operands("cpu")
    there = [x.detach().cuda().requires_grad_() for x in here]
    results = []
    for tensors in (here, there):
        h, state = functional.mlstm(*tensors, return_state=True, backend="simt" if tensors is here else None)
        results.append([h, *state[:2], *torch.autograd.grad(h.sum() + state.C.sum(), tensors)])
    for a, b in zip(*results):
        assert b.device.type == "cuda" and isinstance(b, Played) and not isinstance(a, Played)
        assert torch.equal(a, b.cpu())


def test_tensors_of_two_devices_do_not_mix(h100):
    x = torch.ones(3, device="cuda")
    assert (x + torch.tensor(1.0)).device.type == "cuda"  # a number
    assert torch.equal(x[torch.tensor([0, 2])].cpu(), torch.ones(2))  # an index
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()
    with pytest.raises(ValueError, match="got a tensor on cpu, expected cuda"):
        functional.mlstm(*operands("cuda")[:4], torch.zeros(1, 70, 2))


def test_a_kernel_cannot_read_memory_of_the_host(h100, monkeypatch):
    torch_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch_empty(*size, **{**options, "device": "cpu"}))
    with torch.no_grad(), pytest.raises(RuntimeError, match="on cpu, expected"):
        functional.mlstm(*operands())
    host = torch_empty(8, device="cpu")
    fields = dict(rows=1, C_size=4, n_size=0, C=host.data_ptr(), D=0, n=0, d=0, out=0, stream=(0, 0))
    with pytest.raises(AssertionError, match="is of no tensor on the GPU"):
        native._C.mlstm_state_dots(**fields)


def test_a_capture_forbids_what_waits_for_the_device(h100):
    x = torch.ones(3, device="cuda")
    for wait in (x.cpu, x.sum().item, x.nonzero, lambda: torch.equal(x, x)):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), capture(Graph()):
            wait()


def test_a_replayed_graph_computes_from_what_is_in_its_tensors_now(h100):
    tensors, graph = [x.detach() for x in operands()], Graph()
    with torch.no_grad():
        with capture(graph):
            h = functional.mlstm(*tensors)
        before = h.clone()
        tensors[2].mul_(2)
        assert torch.equal(h, before)
        graph.replay()
    assert torch.equal(h, 2 * before)


@pytest.mark.parametrize(("name", "largest"), [("A100", 768), ("RTX 4090", 512), ("H100", 1024)])
def test_the_limits_are_those_of_the_gpu(name, largest):
    with played_gpu.played(GPUS[name]), played_gpu.modes():
        assert torch.cuda.get_device_properties(0).shared_memory_per_block_optin == GPUS[name].shared_per_block
        assert native._C.slstm_kernel("float32", largest) == "grid"
        assert native._C.slstm_kernel("bfloat16", 256) == ("cluster" if name == "H100" else "grid")
        with pytest.raises(ValueError, match=f"expected 1 to {largest} in float32 on sm_{GPUS[name].sm}"):
            native._C.slstm_kernel("float32", 1032)
        run(make_case(1, 2, 1, 64), "cuda", torch.float32)
    assert not torch.cuda.is_available() and not isinstance(native._C, played_gpu.Module)


def run_played(name: str, sample: int, *files: str, keyword: str = "cuda") -> str:
    """The end of what pytest prints when it runs ``sample`` cases of every test of these files on a played GPU."""
    settings = {"XLSTM_PLAYED_GPU": name, "XLSTM_PLAYED_SAMPLE": str(sample)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-k", keyword]
    done = subprocess.run(
        [*command, *(str(HERE / file) for file in files)], env={**os.environ, **settings}, cwd=HERE.parent, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


#: Whose tests depend on the GPU's limits, on the device of a tensor, on the way a kernel is chosen.
SMALL = ("test_mlstm_step_kernel.py", "test_slstm_kernel_ops.py", "test_slstm_step_kernel.py", "test_slstm_split_kernels.py")
WIDE = (
    *SMALL, "test_mlstm.py", "test_mlstm_kernels.py", "test_mlstm_models.py", "test_ops.py", "test_simt_primitives.py",
    "test_simt_tile.py", "test_slstm_kernels.py",
)  # fmt: skip


@pytest.mark.parametrize("name", GPUS)
def test_tests_of_backend_cuda_are_right(name):
    assert " passed" in run_played(name, 1, *SMALL)


def test_tests_of_a_device_alone_are_right():
    assert " passed" in run_played("H100", 0, "test_gpu.py", keyword="decode or stream or (graph and mlstm)")


@pytest.mark.deep
@pytest.mark.parametrize("name", GPUS)
def test_all_tests_of_backend_cuda_are_right(name):
    run_played(name, 3, *WIDE)
    run_played(name, 0, "test_gpu.py", keyword="")
