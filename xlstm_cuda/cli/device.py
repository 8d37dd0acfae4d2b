"""Where the model runs: device, threads, and the random numbers that belong to them."""

from __future__ import annotations

from typing import Any

import torch

from ..backends import backends
from .errors import CommandError


class Device:
    """A torch device that is known to work here."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def choose(cls, name: str, backend: str | None = None, threads: int | None = None) -> Device:
        """From "auto", "cpu", "cuda" or "cuda:1". auto is the GPU where the kernels run, else the CPU.

        Raises:
            CommandError: the device is not there.
        """
        if name == "auto":
            return cls(torch.device("cuda" if backends()["cuda"].usable else "cpu"))
        device = torch.device(name)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise CommandError(f"--device: got {name}, but PyTorch sees no CUDA device; `python -m xlstm_cuda info` says more")
            if device.index is not None and device.index >= torch.cuda.device_count():
                raise CommandError(f"--device: got {name}, expected at most cuda:{torch.cuda.device_count() - 1}")
        return cls(device)

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
        if self.device.type == "cuda":
            return f"{self.device}, {torch.cuda.get_device_name(self.device)}"
        return f"{self.device}, {torch.get_num_threads()} threads"
