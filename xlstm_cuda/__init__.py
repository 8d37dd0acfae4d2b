"""xLSTM for PyTorch: sLSTM and mLSTM as fused kernels, drop-in layers, residual blocks and language models (arXiv 2405.04517)."""

# ruff: noqa: E402 (Ctrl-C and OpenMP's threads must be looked after before the imports that take long)
import pkgutil

# A checkout's folder shadows an installed package of the same name: look for the compiled modules in both.
__path__ = pkgutil.extend_path(__path__, __name__)

from .cli.interrupts import importing as _importing
from .cli.interrupts import is_the_command as _is_the_command
from .cli.sharing import share_the_machine as _share_the_machine

_importing()
if _is_the_command():
    _share_the_machine()

from . import blocks, checkpoints, functional, generation, integrations, models, packing, simt, states
from .backends import backends
from .blocks import *  # noqa: F403
from .layers import mLSTM, sLSTM
from .models import *  # noqa: F403
from .native import _C
from .states import MLSTMState, SLSTMState

__version__: str = _C.version

__all__ = [
    "MLSTMState",
    "SLSTMState",
    "backends",
    "checkpoints",
    "functional",
    "generation",
    "integrations",
    "mLSTM",
    "packing",
    "sLSTM",
    "simt",
    "states",
    *blocks.__all__,
    *models.__all__,
]
