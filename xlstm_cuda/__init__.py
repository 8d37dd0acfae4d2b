"""xLSTM for PyTorch: sLSTM and mLSTM as fused kernels, drop-in layers, residual blocks and language models (arXiv 2405.04517)."""

import pkgutil

# A checkout's folder shadows an installed package of the same name: look for the compiled modules in both.
__path__ = pkgutil.extend_path(__path__, __name__)

from . import functional, simt
from .backends import backends
from .native import _C
from .states import MLSTMState, SLSTMState

__version__: str = _C.version

__all__ = ["MLSTMState", "SLSTMState", "backends", "functional", "simt"]
