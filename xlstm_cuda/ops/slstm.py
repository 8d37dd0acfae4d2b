"""sLSTM over the reference recurrence, until the native one takes this file's place."""

from __future__ import annotations

import torch


def slstm(x, R, b, state, reset, cu_seqlens, forget_gate, backend):
    """Validated operands of `functional.slstm`; returns h and the final h, c, n, m."""
    from .. import functional

    return functional.slstm(
        x, R, b, state=state, return_state=True, reset=reset, cu_seqlens=cu_seqlens, forget_gate=forget_gate, backend="reference"
    )


def slstm_step(x, R, b, state, forget_gate, backend):
    """Validated operands of `functional.slstm_step`, without gradients."""
    from .. import functional

    with torch.no_grad():
        return functional.slstm_step(x, R, b, state, forget_gate=forget_gate, backend="reference")
