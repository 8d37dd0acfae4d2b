"""The xLSTM model of transformers (xLSTM-7b): `mLSTMBackend` of mlstm_kernels where `xlstm` is installed, else its own class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import mlstm_kernels, patch
from .patch import Handle, Swap


def enable(backend: str | None = None) -> Handle:
    """Computes the mLSTM of `xLSTMModel` and `xLSTMForCausalLM` with xlstm_cuda. generate, Trainer and caches stay transformers'.

    Raises what `patch.enable` raises.
    """
    return patch.enable("transformers", backend, swaps)


def swaps(backend: str | None) -> list[Swap]:
    """What `enable` swaps."""
    module = patch.peer("transformers", "transformers.models.xlstm.modeling_xlstm", "transformers", (4, 56), (6, 0))
    if getattr(module, "external_xlstm", False) and patch.is_on("alias_xlstm"):
        return []  # its blocks are ours already
    if getattr(module, "external_xlstm", False):
        return mlstm_kernels.swaps(backend)
    if not hasattr(module, "xLSTMBackend"):
        raise patch.UnsupportedVersion(f"{module.__name__}: got no class xLSTMBackend, expected one where xlstm is not installed")

    def replace(original: Callable) -> Callable:
        def forward(
            self: Any, query: Tensor, key: Tensor, value: Tensor, igate: Tensor, fgate: Tensor, *others: Any, **options: Any
        ) -> Any:
            return mlstm_kernels.run_backend(self.config, backend, query, key, value, igate, fgate, *others, **options)

        return patch.keeping_signature(original, forward)

    names = ("query", "key", "value", "igate", "fgate", *mlstm_kernels.STATE_NAMES, "return_last_states", "mode")
    return [Swap(module.xLSTMBackend, "forward", replace, names)]
