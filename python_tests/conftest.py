"""Fixtures of every test: uninitialised memory is NaN, random numbers are seeded, one thread whatever the machine."""

import pytest
import torch


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
