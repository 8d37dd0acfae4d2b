"""sLSTM over the reference recurrence, until the native one takes this file's place."""

from __future__ import annotations

import torch
from torch import Tensor


def slstm(x, R, b, h0, c0, n0, m0, reset, cu_seqlens, forget_gate, backend):
    """Validated operands of `functional.slstm`; returns h and the final h, c, n, m."""
    from .. import functional

    state = None if h0 is None else (h0, c0, n0, m0)
    h, last = functional.slstm(
        x, R, b, state=state, return_state=True, reset=reset, cu_seqlens=cu_seqlens, forget_gate=forget_gate, backend="reference"
    )
    return h, *last


def slstm_step(x, R, b, h, c, n, m, forget_gate, backend) -> tuple[Tensor, ...]:
    """Validated operands of `functional.slstm_step`, without gradients."""
    from .. import functional

    with torch.no_grad():
        out, last = functional.slstm_step(x, R, b, (h, c, n, m), forget_gate=forget_gate, backend="reference")
    return out, *last
