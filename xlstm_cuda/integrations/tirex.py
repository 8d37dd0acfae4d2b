"""TiRex: the sLSTM cell of tirex-ts, and both cells of tirex-2 (its sLSTM calls flashrnn, its mLSTM is `mLSTMBackend`)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..states import SLSTMState
from . import flashrnn, mlstm_kernels, patch
from .patch import Handle, Swap


def enable(backend: str | None = None) -> Handle:
    """Computes the cells of tirex-ts and tirex-2, whichever are installed, with xlstm_cuda.

    On a CPU, tirex-ts by itself computes in bfloat16 whatever the model's dtype is. With this it computes in the dtype of its
    input. Raises what `patch.enable` raises.
    """
    return patch.enable("tirex", backend, swaps)


def swaps(backend: str | None) -> list[Swap]:
    """What `enable` swaps: for each of the two packages that can be imported."""
    found: list[Swap] = []
    errors = []
    for name, of_package in (("tirex", _of_tirex), ("tirex2", _of_tirex2)):
        if not _installed(name):
            continue
        try:
            found += of_package(backend)
        except ImportError as error:  # such as a package without its own dependencies, which nobody can use then
            errors.append(error)
    if not found:
        raise errors[0] if errors else ImportError("integrations.tirex: neither tirex-ts nor tirex-2 is installed", name="tirex")
    return found


def _installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def _of_tirex(backend: str | None) -> list[Swap]:
    cell = patch.peer("tirex", "tirex.models.slstm.cell", "tirex-ts", (1, 0), (2, 0)).sLSTMCell

    def replace(original: Callable) -> Callable:
        def run(self: Any, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return _run(self, input, state, backend)

        return patch.keeping_signature(original, run)

    names = [name for name in ("_impl_torch", "_impl_cuda") if name == "_impl_torch" or hasattr(cell, name)]
    return [Swap(cell, name, replace, ("input", "state")) for name in names]


def _run(cell: Any, input: Tensor, state: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """input (S, B, 4, NH, DH), state (4, B, D): h (S, B, D) and the state after the last step."""
    _, B, _, NH, DH = input.shape
    R = cell._recurrent_kernel_.view(NH, DH, 4, DH).permute(2, 0, 3, 1)  # from [head, in, gate, out]
    b = cell._bias_.view(NH, 4, DH).transpose(0, 1)
    R, b = (weight if weight.dtype in (input.dtype, torch.float32) else weight.to(input.dtype) for weight in (R, b))
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    before = SLSTMState(*state.to(dtype).view(4, B, NH, DH).unbind(0))
    h, last = functional.slstm(input.transpose(0, 1), R, b, state=before, return_state=True, backend=backend)
    return h.transpose(0, 1).flatten(2), torch.stack(last).flatten(2)


def _of_tirex2(backend: str | None) -> list[Swap]:
    """Its layer reads only h and the last state of what flashrnn returns, so its own call is served, without the other states."""
    layer = patch.peer("tirex", "tirex2.model.component.flashrnn_slstm", "tirex-2", (0, 4), (1, 0))._FlashRNNLayer

    def replace(original: Callable) -> Callable:
        def slstm_flashrnn(
            self: Any, Wx: Tensor, R: Tensor, b: Tensor, config: Any, states: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            x, R, b = Wx, flashrnn.permuted(R, config.recurrent_shape, "GHDP"), flashrnn.permuted(b, config.bias_shape, "GHD")
            R, b = (weight if weight.dtype in (x.dtype, torch.float32) else weight.to(x.dtype) for weight in (R, b))
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            before = None if states is None else SLSTMState(*states[:, :, 0].to(dtype).unbind(0))
            h, last = functional.slstm(x, R, b, state=before, return_state=True, backend=backend)
            return h.unsqueeze(0), torch.stack(last).unsqueeze(2)

        return patch.keeping_signature(original, slstm_flashrnn)

    ours = [Swap(layer, "slstm_flashrnn", replace, ("Wx", "R", "b", "config", "states"))]
    return [*ours, *flashrnn.swaps(backend), *mlstm_kernels.swaps(backend)]
