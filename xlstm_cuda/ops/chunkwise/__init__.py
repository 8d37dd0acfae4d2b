"""The mLSTM on a CPU: the four chunkwise walks H, dQ, dK, dV on batched PyTorch matmuls (csrc/mlstm/README.md).

Chunks lie on the leading axis, (NC, R, L, D) with R = B*NH rows, so that a group of chunks is one slice and one batched matmul.
Everything inside a chunk is one matmul over all chunks of a group; only the states go from chunk to chunk in a loop. Groups bound
the workspace, so memory is O(S). Gates are scanned in float64, natively like the weights they make (csrc/cpu/mlstm_gates.h);
matmuls run in float32, or float64 for float64 inputs.
"""

from .backward import backward
from .forward import forward
from .options import Options
from .step import step

__all__ = ["Options", "backward", "forward", "step"]
