"""The package flashrnn: its function="slstm" on every backend name; its other cells stay its own.

`_get_kernel` is swapped, below the public function, so that code which imported `flashrnn.flashrnn` long ago is served too.
Axes by letters: T steps, B batch, G gates, S states h c n m, H heads, D units, P previous units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..states import SLSTMState
from . import patch
from .every_state import every_state
from .patch import Handle, Swap


def enable(backend: str | None = None) -> Handle:
    """Computes ``flashrnn(..., function="slstm")`` with xlstm_cuda, on any device, without a compiler.

    Raises what `patch.enable` raises.
    """
    return patch.enable("flashrnn", backend, swaps)


def swaps(backend: str | None) -> list[Swap]:
    """What `enable` swaps."""
    module = patch.peer("flashrnn", "flashrnn.flashrnn.flashrnn", "flashrnn", (1, 0), (2, 0))

    def replace(original: Callable) -> Callable:
        def get_kernel(config: Any) -> Callable:
            if not implemented(config):
                return original(config)

            def run(Wx: Tensor, states: Tensor, R: Tensor, b: Tensor, **unused: Any) -> tuple[Tensor, Tensor]:
                x, R, b, before = operands(config, Wx, R, b, states)
                h, _ = functional.slstm(x, R, b, state=before, return_state=True, backend=backend)
                every = every_state(x, R, b, h, before).to(Wx.dtype)
                last = every[:, :, -1:] if x.shape[1] else torch.stack(before).unsqueeze(2).to(Wx.dtype)
                return permuted(every, "SBTHD", config._internal_output_shape), permuted(
                    last, "SBTHD", config._internal_output_shape
                )

            return run

        return patch.keeping_signature(original, get_kernel)

    return [Swap(module, "_get_kernel", replace, ("config",))]


def implemented(config: Any) -> bool:
    """Whether a FlashRNNConfig asks for what `functional.slstm` computes: the sLSTM without cuts and clipping."""
    plain = not config.gradient_recurrent_cut and config.gradient_recurrent_clipval is None and config.forward_clipval is None
    return config.function == "slstm" and plain


def operands(config: Any, Wx: Tensor, R: Tensor, b: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor, SLSTMState]:
    """The operands of `functional.slstm` from those in the internal layouts of a FlashRNNConfig; half-precision weights of
    another dtype than x are taken in x's."""
    x = permuted(Wx, config._internal_input_shape, "BTGHD")
    R = permuted(R, config._internal_recurrent_shape, "GHDP")
    b = permuted(b, config._internal_bias_shape, "GHD")
    R, b = (weight if weight.dtype in (x.dtype, torch.float32) else weight.to(x.dtype) for weight in (R, b))
    before = permuted(states, config._internal_output_shape, "TSBHD")[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x, R, b, SLSTMState(*before.to(dtype).unbind(0))


def permuted(x: Tensor, axes: str, wanted: str) -> Tensor:
    """x, whose axes have these letters, with its axes in another order."""
    return x.permute([axes.index(letter) for letter in wanted])
