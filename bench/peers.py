"""The packages that we are compared with: each optional, imported only when a case asks for it, none of their code copied."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import logging
from types import ModuleType

from .contenders import Unusable

#: Module, and the name of its distribution on PyPI.
PEERS = {
    "xlstm": "xlstm",
    "mlstm_kernels": "mlstm_kernels",
    "flashrnn": "flashrnn",
    "transformers": "transformers",
    "tirex": "tirex-ts",
    "fla": "flash-linear-attention",
    "mamba_ssm": "mamba-ssm",
    "triton": "triton",
}


@functools.cache
def unusable(module: str) -> str | None:
    """Why a peer cannot be imported here; None when it can. Whatever an import prints is not shown."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            importlib.import_module(module)
    except Exception as error:  # a peer's import may compile, probe a device, or fail in any way of its own
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def load(module: str) -> ModuleType:
    """A module of a peer, such as "xlstm.blocks.slstm.cell"; Unusable with the reason where it is not importable."""
    if reason := unusable(module):
        raise Unusable(f"{module} is not importable: {reason}")
    return importlib.import_module(module)


def is_peer(contender: str) -> bool:
    """Whether a contender's name starts with that of a peer."""
    return contender.split()[0].rstrip(",") in PEERS


def version(module: str) -> str | None:
    """The installed version of a peer, None without it."""
    try:
        return importlib.metadata.version(PEERS[module])
    except importlib.metadata.PackageNotFoundError:
        return None


def report() -> list[str]:
    """A line for every peer: its version, or why it does not take part."""
    return [f"{module:14} {reason if (reason := unusable(module)) else version(module) or 'importable'}" for module in PEERS]


@contextlib.contextmanager
def _quiet():
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
