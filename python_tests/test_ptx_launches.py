"""The host code of csrc/device/launch.cuh on the runtime of _ptx: devices, limits that grow, errors (csrc/ptx/cudart.cpp).

CUDA and the launch code remember per device what they allowed, so every test has devices that no launch has seen.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple

import ptx_backend
import pytest
import torch
from slstm_cases import make_case
from torch import Tensor

from xlstm_cuda import functional, simt
from xlstm_cuda.ops import launch
from xlstm_cuda.ops.slstm_kernels import forced_kernel

INVALID_VALUE, MEMORY_ALLOCATION, LAUNCH_FAILURE = 1, 2, 719  # cudaError_t
BYTES = {512: 59_648, 520: 92_416, 768: 125_184, 1024: 190_720}  #: of a block of the float32 grid forward, one kernel, by DH
BLOCKS, CLUSTERS = "cudaOccupancyMaxActiveBlocksPerMultiprocessor", "cudaOccupancyMaxActiveClusters"
LAUNCH, LIMIT = "cudaLaunchKernelExC", "MaxDynamicSharedMemorySize"
numbers = itertools.count(1)


class RuntimeCall(NamedTuple):
    """One call of the CUDA runtime; device is the current one."""

    function: str
    device: int
    kernel: str
    value: int


@pytest.fixture(scope="module")
def loaded():
    try:
        module = ptx_backend.load()
    except ImportError as error:
        pytest.skip(str(error))
    module.ptx_watch_allocations()
    return module


@pytest.fixture
def ptx(loaded, monkeypatch):
    """The interpreter, in place of the executor; device 0 is the current one before and after."""
    ptx_backend.configure(loaded, ptx_backend.CARDS[90])
    monkeypatch.setattr(simt, "module", lambda: loaded)
    loaded.ptx_set_device(0)
    loaded.ptx_calls()
    yield loaded
    loaded.ptx_set_device(0)


@pytest.fixture
def device(ptx) -> int:
    """A device that no launch has seen."""
    index = next(numbers)
    assert index < ptx.ptx_devices, "run fewer of these tests in one process"
    return index


def calls(module) -> list[RuntimeCall]:
    return [RuntimeCall(*call) for call in module.ptx_calls()]


def of_grid(found: list[RuntimeCall], function: str) -> list[RuntimeCall]:
    return [call for call in found if call.function == function and "grid_kernel" in call.kernel and "Forward" in call.kernel]


def forward(DH: int, dtype: torch.dtype = torch.float32) -> Tensor:
    case = make_case(1, 1, 1, DH, state=False).to(dtype)
    return functional.slstm(case.x, case.R, case.b, backend="simt")


def grid_forward(DH: int) -> Tensor:
    with forced_kernel("grid"):
        return forward(DH)


@pytest.fixture
def on_device(monkeypatch, device) -> int:
    """The streams of launches are on this device; the current one is another."""
    monkeypatch.setattr(launch, "Stream", lambda: (0, device))
    return device


def test_launch_goes_to_its_streams_device_and_comes_back(ptx, on_device):
    h = grid_forward(512)
    found = calls(ptx)
    for function in (LIMIT, BLOCKS, LAUNCH):
        assert [(call.device, call.value) for call in of_grid(found, function)] == [(on_device, BYTES[512])]
    assert ptx.ptx_device() == 0
    switches = [call.value for call in found if call.function == "cudaSetDevice"]
    assert switches and switches == [on_device, 0] * (len(switches) // 2)
    assert torch.equal(h, make_again(ptx))


def make_again(ptx) -> Tensor:
    """The same call on the current device, for which nothing is switched."""
    h = torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "Stream", lambda: (0, -1))
        h = grid_forward(512)
    assert not [call for call in calls(ptx) if call.function == "cudaSetDevice"]
    return h


@pytest.mark.parametrize("function", [LAUNCH, BLOCKS, LIMIT])
def test_device_comes_back_after_an_error(ptx, on_device, function):
    if function == LAUNCH:  # the first launch zeroes counters, on the same device
        grid_forward(512)
    ptx.ptx_calls()
    ptx.ptx_fail_next(function, LAUNCH_FAILURE)
    with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure: ptx: planted by a test"):
        grid_forward(512)
    assert ptx.ptx_device() == 0
    found = calls(ptx)
    assert [call.device for call in found if call.function == function] == [on_device]
    assert ("cudaGetLastError", LAUNCH_FAILURE) in [(call.function, call.value) for call in found]  # not the next call's error
    grid_forward(512)


def test_device_that_is_not_there_is_named(ptx, monkeypatch):
    monkeypatch.setattr(launch, "Stream", lambda: (0, ptx.ptx_devices))
    with pytest.raises(RuntimeError, match=f"xlstm_cuda: device {ptx.ptx_devices}: cudaErrorInvalidDevice"):
        grid_forward(512)
    assert ptx.ptx_device() == 0


def test_error_of_the_occupancy_call_is_named(ptx, device):
    ptx.ptx_set_device(device)
    ptx.ptx_fail_next(BLOCKS, MEMORY_ALLOCATION)
    message = rf"xlstm_cuda: occupancy: cudaErrorMemoryAllocation: .* block \(256,1,1\), .* {BYTES[512]} bytes of dynamic shared"
    with pytest.raises(RuntimeError, match=message):
        grid_forward(512)
    ptx.ptx_fail_next(BLOCKS, INVALID_VALUE)  # how CUDA says that no processor holds the shape
    with pytest.raises(RuntimeError, match="does not fit a processor of this device"):
        grid_forward(512)
    grid_forward(512)


def test_error_of_the_clusters_call_is_named_and_asked_again(ptx, device):
    ptx.ptx_set_device(device)
    ptx.ptx_fail_next(CLUSTERS, MEMORY_ALLOCATION)
    with pytest.raises(RuntimeError, match=r"xlstm_cuda: clusters: cudaErrorMemoryAllocation: .* cluster \(5,1,1\)"):
        ptx.slstm_kernel("bfloat16", 136)
    assert ptx.slstm_kernel("bfloat16", 136) == "cluster"
    ptx.ptx_calls()
    assert ptx.slstm_kernel("bfloat16", 136) == "cluster"
    assert not [call for call in calls(ptx) if call.function == CLUSTERS]


def limits(module, device: int) -> list[int]:
    """What the grid kernel was allowed on the device, in the order of the calls."""
    return [call.value for call in of_grid(calls(module), LIMIT) if call.device == device]


def test_shared_memory_only_grows(ptx, device):
    ptx.ptx_set_device(device)
    for DH in (520, 512, 1024, 768, 512):
        grid_forward(DH)
    assert limits(ptx, device) == [BYTES[520], BYTES[1024]]


def test_shared_memory_that_was_refused_is_asked_again(ptx, device):
    ptx.ptx_set_device(device)
    ptx.ptx_fail_next(LIMIT, MEMORY_ALLOCATION)
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        grid_forward(512)
    grid_forward(512)
    assert limits(ptx, device) == [BYTES[512]] * 2


def together(*tasks: Callable[[], None]) -> list[BaseException]:
    """Runs the tasks in threads that start at once; what they raised."""
    start, errors = threading.Barrier(len(tasks)), []

    def run(task: Callable[[], None]) -> None:
        try:
            start.wait()
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("order", [(1024, 512), (512, 1024)])
def test_shared_memory_only_grows_where_threads_launch(ptx, device, order):
    def launches(*sizes: int) -> Callable[[], None]:
        def task() -> None:
            ptx.ptx_set_device(device)  # of this thread
            for DH in sizes:
                forward(DH)

        return task

    with forced_kernel("grid"):
        assert together(launches(*order, 520, 512), launches(*order[::-1], 768, 512)) == []
    found = limits(ptx, device)
    assert found == sorted(set(found)) and found[-1] == BYTES[1024]


def test_device_without_clusters_gets_the_grid_kernel(ptx, device):
    with_clusters = forward(136, torch.bfloat16)
    assert "cluster_kernel" in [call for call in calls(ptx) if call.function == LAUNCH][-1].kernel
    ptx.ptx_hold_clusters(device, False)
    ptx.ptx_set_device(device)
    on_grid = forward(136, torch.bfloat16)
    found = calls(ptx)
    assert {call.device for call in found if call.function == CLUSTERS} == {device}
    assert len(of_grid(found, LAUNCH)) == 1
    assert not [call for call in found if call.function == LAUNCH and "cluster" in call.kernel]
    torch.testing.assert_close(on_grid, with_clusters, rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds no cluster of that size"), forced_kernel("cluster"):
        forward(136, torch.bfloat16)
    ptx.ptx_set_device(0)
    assert ptx.slstm_kernel("bfloat16", 136) == "cluster"
