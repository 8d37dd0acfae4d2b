"""One call moves an existing model here: the recurrences of another package are computed by this one, in place and reversibly.

The call is ``xlstm_cuda.integrations.<name>.enable(backend=None)``, for xlstm, mlstm_kernels, flashrnn, transformers and tirex;
docs/users.md has five lines for each. It does not matter whether a model was made before or after the call. Weights, configs and
pickles stay those of the other package.
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
