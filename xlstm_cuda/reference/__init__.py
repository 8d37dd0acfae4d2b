"""The definition of right: both recurrences step by step in plain PyTorch, differentiated by autograd.

Depends on torch alone. Any device, any floating dtype; float64 is the truth that every other backend is tested against.
"""

from .mlstm import mlstm, mlstm_step
from .slstm import slstm, slstm_step

__all__ = ["mlstm", "mlstm_step", "slstm", "slstm_step"]
