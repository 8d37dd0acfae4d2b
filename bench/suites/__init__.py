"""The suites by name: each makes its cases for a device, a small set with ``quick``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..contenders import Case
from . import block, decode, integrations, mlstm, model, slstm

SUITES: dict[str, Callable[[torch.device, bool], list[Case]]] = {
    "mlstm": mlstm.cases,
    "slstm": slstm.cases,
    "block": block.cases,
    "model": model.cases,
    "decode": decode.cases,
    "integrations": integrations.cases,
}


def find(suite: str, name: str, device: torch.device, quick: bool) -> Case:
    """The case of this name. KeyError without one."""
    return {case.name: case for case in SUITES[suite](device, quick)}[name]
