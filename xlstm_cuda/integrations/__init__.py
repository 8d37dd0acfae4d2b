"""One call that moves an existing model: the recurrences of other packages are served by ours, in place and reversibly.

``xlstm_cuda.integrations.<name>.enable(backend=None)`` for xlstm, mlstm_kernels, flashrnn, transformers and tirex; docs/users.md
has five lines for each. Models made before or after the call are served alike; weights, configs and pickles stay the peer's.
"""

from . import flashrnn, mlstm_kernels, tirex, transformers, xlstm
from .alias import alias_xlstm
from .patch import Handle, IntegrationError, UnsupportedVersion, enabled

__all__ = [
    "Handle",
    "IntegrationError",
    "UnsupportedVersion",
    "alias_xlstm",
    "enabled",
    "flashrnn",
    "mlstm_kernels",
    "tirex",
    "transformers",
    "xlstm",
]
