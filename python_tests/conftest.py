"""Fixtures of every test: uninitialised memory is NaN, random numbers are seeded, one thread whatever the machine."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--ptx", metavar="80|90a|100f|120f", help='backend "simt" runs nvcc\'s PTX of this architecture (docs/ptx.md)'
    )


def pytest_configure(config):
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
    if not config.getoption("--ptx"):
        return
    import ptx_backend

    for item in items:
        if reason := config.without_ptx or ptx_backend.not_here(item):
            item.add_marker(pytest.mark.skip(reason=reason))


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


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run in parallel processes; those about threads choose their own number."""
    torch.set_num_threads(1)
