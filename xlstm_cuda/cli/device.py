"""Where the model runs: device, backend, threads, and the random numbers that belong to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from ..backends import backends, resolve
from .errors import CommandError


class Device:
    """A torch device that is known to work here, and the backend asked for (None goes by the device)."""

    def __init__(self, device: torch.device, backend: str | None = None) -> None:
        self.device = device
        self.backend = backend

    @classmethod
    def choose(cls, name: str, backend: str | None = None, threads: int | None = None) -> Device:
        """From "auto", "cpu", "cuda" or "cuda:1". auto: the GPU where the kernels run, else the CPU. Sets the CPU threads.

        Raises:
            CommandError: the device is not there, or the backend is not usable on it.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if name == "auto":
            prefers_cpu = backend in ("cpu", "simt") or not backends()["cuda"].usable
            device = torch.device("cpu" if prefers_cpu else "cuda")
        else:
            device = torch.device(name)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise CommandError(f"--device: got {name}, but PyTorch sees no CUDA device; see `python -m xlstm_cuda info`")
            if device.index is not None and device.index >= torch.cuda.device_count():
                raise CommandError(f"--device: got {name}, expected at most cuda:{torch.cuda.device_count() - 1}")
        try:
            resolve(backend, device)
        except (ValueError, RuntimeError) as error:
            raise CommandError(f"--backend: {error}") from None
        return cls(device, backend)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """A model that the backend does not take, as an error of the command."""
        try:
            yield
        except ValueError as error:
            raise CommandError(f"--backend {self.backend}: {error}") from error

    def memory(self) -> int:
        """Bytes of memory on the device, used or not."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def random_state(self) -> dict[str, Any]:
        """States of the generators that dropout on this device draws from."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_random_state(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def __str__(self) -> str:
        threads = torch.get_num_threads()
        about = f"{threads} thread{'s' * (threads != 1)}"
        if self.device.type == "cuda":
            about = torch.cuda.get_device_name(self.device)
        return f"{self.device} ({about})" + (f", backend {self.backend}" if self.backend else "")
