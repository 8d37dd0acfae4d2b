"""Fixtures of every test: uninitialised memory is NaN, random numbers are seeded, one thread whatever the machine.

--ptx=90a lets backend "simt" run nvcc's PTX (ptx_backend.py).

XLSTM_PLAYED_GPU="A100", "RTX 4090" or "H100" lets the host executor play a GPU for the tests of backend "cuda" (played_gpu.py),
XLSTM_PLAYED_SAMPLE=2 takes the first and at most one other of the cases of every test.
"""

import contextlib
import os
import random
from contextlib import ExitStack

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401  PyTorch's extension loader wants it, and it fails where distutils was imported before it

import pytest
import torch
from backend_fixture import NATIVE, backend_fixture

GPU = os.environ.get("XLSTM_PLAYED_GPU")


def pytest_addoption(parser):
    parser.addoption(
        "--ptx", metavar="80|90a|100f|120f", help='backend "simt" runs nvcc\'s PTX of this architecture (docs/ptx.md)'
    )


def pytest_configure(config):
    """Before any test file is imported: they look for a device then."""
    if GPU and config.getoption("--ptx"):
        raise pytest.UsageError("--ptx and XLSTM_PLAYED_GPU: both take the executor's place, expected one of them")
    if GPU:
        import played_gpu

        stack = ExitStack()
        stack.enter_context(played_gpu.played(played_gpu.GPUS[GPU]))
        config.add_cleanup(stack.close)
    config.without_ptx = ""  # why the option cannot be followed here
    if target := config.getoption("--ptx"):
        import ptx_backend

        if target not in ptx_backend.TARGETS:
            raise pytest.UsageError(f"--ptx: got {target!r}, expected one of {', '.join(ptx_backend.TARGETS)}")
        try:
            ptx_backend.play(target)
        except ImportError as error:
            config.without_ptx = str(error)


def pytest_report_header(config):
    if target := config.getoption("--ptx"):
        return config.without_ptx or f'backend "simt" of this run: nvcc\'s PTX for sm_{target}, interpreted'


def pytest_collection_modifyitems(config, items):
    if GPU:
        choose_what_is_played(config, items)
    if config.getoption("--ptx"):
        import ptx_backend

        for item in items:
            if reason := config.without_ptx or ptx_backend.not_here(item):
                item.add_marker(pytest.mark.skip(reason=reason))


def choose_what_is_played(config, items):
    import played_gpu

    for item in items:
        for part, reason in played_gpu.NOT_PLAYED.items():
            if part in item.name:
                item.add_marker(pytest.mark.skip(reason=f"not played: {reason}"))
    sample = int(os.environ.get("XLSTM_PLAYED_SAMPLE", "0"))
    if not sample:
        return
    tests = {}
    for item in items:
        if "cuda" in item.nodeid or "test_gpu.py" in item.nodeid:
            tests.setdefault((item.path, item.originalname), []).append(item)
    kept = {
        item
        for cases in tests.values()
        for item in [cases[0], *random.Random(len(cases)).sample(cases[1:], min(sample, len(cases)) - 1)]
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_runtest_setup():
    """One thread for a test and its fixtures: tests run in parallel processes; those about threads choose their own number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def played_device():
    """Tensors on "cuda" are played ones while a test runs."""
    if not GPU:
        yield
        return
    import played_gpu

    with played_gpu.modes():
        yield


backend = backend_fixture(NATIVE)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN, so that an output or workspace that is read before it is written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Which peers the tests could compare with: what is absent was skipped."""
    import importlib.metadata

    versions = []
    for name in ("xlstm", "mlstm_kernels", "flashrnn", "transformers", "accelerate", "tirex-ts", "tirex-2", "neuralforecast"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    terminalreporter.write_line("peers: " + ", ".join(versions))
