"""`resolve` and `backends` tell the truth about CUDA: no kernels in the build, an old driver, no code for this GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import xlstm_cuda
from xlstm_cuda import backends, native
from xlstm_cuda.backends import _lasting_cuda_problem, resolve

CUDA = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, as far as PyTorch and the module say: machine(error, words) sets what CUDA says of the kernels."""

    def configure(
        error: str = "", words: str = "", architectures: str = "90a-real", capability: tuple[int, int] = (9, 0)
    ) -> None:
        monkeypatch.setattr(native._C, "cuda_architectures", architectures)
        monkeypatch.setattr(native._C, "cuda_version", 13000)
        monkeypatch.setattr(native._C, "cuda_problem", lambda index: (error, words))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "NVIDIA H100")
        _lasting_cuda_problem.cache_clear()

    yield configure
    _lasting_cuda_problem.cache_clear()


def refused(*parts: str) -> None:
    """Both say the same: `resolve` raises what `backends` reports."""
    found = backends()["cuda"]
    assert not found
    for name in (None, "cuda"):
        with pytest.raises(RuntimeError) as error:
            resolve(name, CUDA)
        for text in (str(error.value), found.reason):
            assert all(part in text for part in parts), text


def test_cuda_tensors_without_kernels_in_the_build(machine):
    machine(architectures="")
    refused("this build has no CUDA kernels", "reinstall with XLSTM_CUDA=ON")


def test_a_driver_that_is_too_old(machine):
    machine("cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version")
    refused("driver is too old for the CUDA 13.0", "insufficient", "update the driver")


@pytest.mark.parametrize("error", ["cudaErrorNoKernelImageForDevice", "cudaErrorUnsupportedPtxVersion"])
def test_no_code_for_this_gpu(error, machine):
    machine(error, "no kernel image is available", architectures="90a-real", capability=(8, 6))
    refused("NVIDIA H100, sm_86", "no code for it, only for 90a-real", "CUDAARCHS=86")


def test_a_gpu_that_is_too_old_or_broken(machine):
    machine(capability=(7, 5))
    refused("sm_75", "sm_80 or newer")
    machine("cudaErrorECCUncorrectable", "uncorrectable ECC error")
    refused("NVIDIA H100", "cudaErrorECCUncorrectable: uncorrectable ECC error")


def test_a_gpu_that_works_is_asked_once(machine, monkeypatch):
    machine()
    asked = []
    monkeypatch.setattr(native._C, "cuda_problem", lambda index: asked.append(index) or ("", ""))
    assert resolve(None, CUDA) == resolve("cuda", CUDA) == "cuda" and backends()["cuda"]
    assert resolve(None, torch.device("cuda", 1)) == "cuda"
    assert asked == [0, 1]


def test_a_passing_error_is_asked_again(machine):
    machine("cudaErrorMemoryAllocation", "out of memory")
    refused("out of memory")
    native._C.cuda_problem = lambda index: ("", "")  # the fixture takes it back
    assert resolve(None, CUDA) == "cuda"


def test_fake_cuda_tensors_need_no_kernels(machine):
    machine(architectures="")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert resolve(None, CUDA) == "cuda"


def test_the_reference_takes_cuda_tensors_anywhere(machine):
    machine(architectures="")
    assert resolve("reference", CUDA) == "reference"


def test_a_build_without_kernels_has_nothing_to_say_of_devices():
    if xlstm_cuda.native._C.cuda_architectures:
        pytest.skip("this build has CUDA kernels")
    assert native._C.cuda_problem(0) == ("", "")
    with pytest.raises(RuntimeError, match="this build has no CUDA kernels"):
        resolve(None, CUDA)
