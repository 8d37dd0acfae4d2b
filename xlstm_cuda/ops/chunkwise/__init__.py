"""The mLSTM on a CPU: allocates results and hands addresses to the kernels of csrc/cpu."""

from .options import Options
from .sequence import backward, forward
from .step import step

__all__ = ["Options", "backward", "forward", "step"]
