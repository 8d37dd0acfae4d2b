"""The package mlstm_kernels: every model that computes its mLSTM by `mLSTMBackend`, and our kernels by name in its registries.

`mLSTMBackend` serves xLSTMLarge of `xlstm`, the xLSTM model of transformers where `xlstm` is installed, and TiRex-2.
Layout: q, k (B, NH, S, DHQK), v (B, NH, S, DHHV), gates (B, NH, S); states C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional
from . import patch
from .patch import Handle, Swap

KERNEL = (
    "xlstm_cuda"  #: in the registries: chunkwise_kernel="chunkwise--xlstm_cuda", sequence_kernel and step_kernel "xlstm_cuda"
)
STATE_NAMES = ("c_initial", "n_initial", "m_initial")


def enable(backend: str | None = None) -> Handle:
    """Computes `mLSTMBackend` with xlstm_cuda and adds the name "xlstm_cuda" to the registries of kernels.

    Models that were made with this name keep it, and work, after `disable`. Raises what `patch.enable` raises.
    """
    return patch.enable("mlstm_kernels", backend, swaps)


def swaps(backend: str | None) -> list[Swap]:
    """What `enable` swaps; the integrations whose peers stand on mlstm_kernels hold it too."""
    package = functools.partial(patch.peer, "mlstm_kernels", distribution="mlstm_kernels", at_least=(2, 0), below=(3, 0))
    module = package("mlstm_kernels.torch.backend_module").mLSTMBackend
    chunks = package("mlstm_kernels.torch.chunkwise").registry
    recurrent = package("mlstm_kernels.torch.recurrent")

    def replace(original: Callable) -> Callable:
        def forward(self: Any, *operands: Any, **options: Any) -> Any:
            return run_backend(self.config, backend, *operands, **options)

        return patch.keeping_signature(original, forward)

    def registered(function: Callable) -> Callable[[Any], Callable]:
        return lambda _: function if backend is None else functools.partial(function, backend=backend)

    return [
        Swap(module, "forward", replace, ("q", "k", "v", "i", "f", *STATE_NAMES, "return_last_states", "mode")),
        Swap(chunks, KERNEL, registered(kernel)),
        Swap(recurrent.registry_sequence, KERNEL, registered(kernel)),
        Swap(recurrent.registry_step, KERNEL, registered(step_kernel)),
    ]


def run_backend(
    config: Any,
    backend: str | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c_initial: Tensor | None = None,
    n_initial: Tensor | None = None,
    m_initial: Tensor | None = None,
    return_last_states: bool | None = None,
    mode: str | None = None,
) -> Any:
    """The forward of `mLSTMBackend`, and of the class that transformers has in its place; config is the module's own.

    Every mode takes any S and trains. Mode "inference" always returns the state, in config.inference_state_dtype.
    """
    mode = config.mode if mode is None else mode
    if "train" not in mode and "inference" not in mode:
        raise ValueError(f"mode: got {mode!r}, expected 'train', 'train_with_padding' or 'inference'")
    sigmoid = "siging" in getattr(config, "chunkwise_kernel", "")
    options = dict(igate="sigmoid", normalize=config.normalize_siging) if sigmoid else {}
    h, last = sequence(q, k, v, i, f, (c_initial, n_initial, m_initial), eps=config.eps, backend=backend, **options)
    if "inference" in mode:
        dtype = getattr(torch, config.inference_state_dtype)
        return h, tuple(part.to(dtype) if part.dtype != torch.float64 else part for part in last)
    return (h, last) if (config.return_last_states if return_last_states is None else return_last_states) else h


def sequence(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: Sequence[Tensor | None], **options: Any
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`functional.mlstm` in the layout of this package, one token by the decode path. state: three tensors or Nones."""
    before = None if all(part is None for part in state) else _ours(state, q)
    i, f = _gate(i, q), _gate(f, q)
    if before is not None and q.shape[2] == 1:
        token = (q.squeeze(2), k.squeeze(2), v.squeeze(2), i.squeeze(2), f.squeeze(2))
        h, (C, n, m) = functional.mlstm_step(*token, before, **options)
        return h.unsqueeze(2), (C, n, m.unsqueeze(-1))
    by_step = [x.transpose(1, 2) for x in (q, k, v, i, f)]
    h, (C, n, m) = functional.mlstm(*by_step, state=before, return_state=True, **options)
    return h.transpose(1, 2), (C, n, m.unsqueeze(-1))


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c_initial: Tensor | None = None,
    n_initial: Tensor | None = None,
    m_initial: Tensor | None = None,
    return_last_states: bool = False,
    eps: float = 1e-6,
    chunk_size: int | None = None,
    autocast_kernel_dtype: torch.dtype | None = None,
    dtype_state: torch.dtype | None = None,
    *,
    backend: str | None = None,
) -> Any:
    """A sequence kernel of the registries: any S. `chunk_size` and the dtypes are accepted and do not bind us."""
    h, last = sequence(q, k, v, i, f, (c_initial, n_initial, m_initial), eps=eps, backend=backend)
    return (h, last) if return_last_states else h


def step_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    eps: float = 1e-6,
    dtype_state: torch.dtype | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """One token: q, k (B, NH, DHQK), v (B, NH, DHHV), gates and m (B, NH, 1)."""
    h, last = sequence(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), i, f, (c, n, m), eps=eps, backend=backend)
    return h.squeeze(2), last


def _gate(gate: Tensor, like: Tensor) -> Tensor:
    """Gates of a third dtype, as mixed precision leaves them, in float32."""
    return gate if gate.dtype in (like.dtype, torch.float32) else gate.float()


def _ours(state: Sequence[Tensor | None], like: Tensor) -> tuple[Any, ...]:
    """C, n, m (B, NH) in the dtype of states; `functional` says what is wrong with a state that does not fit."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    C, n, m = (None if part is None else part.to(dtype) for part in state)
    return C, n, m if m is None or m.dim() == 2 else m.squeeze(-1)
