"""sLSTM, equations S1-S3 of csrc/slstm/README.md, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

State = tuple[Tensor, Tensor, Tensor, Tensor]  # h, c, n, m, each (B, NH, DH)


def slstm_step(x: Tensor, R: Tensor, b: Tensor | None, state: State, *, forget_gate: str = "sigmoid") -> tuple[Tensor, State]:
    """One token: x (B, 4, NH, DH), R (4, NH, DH, DH), b (4, NH, DH), all of the state's dtype; gates in the order i, f, z, o.

    Returns h (B, NH, DH) and the new state. m is computed without gradient (it is a gauge).
    """
    h, c, n, m = state
    raw = x + torch.einsum("ghoi,bhi->bgho", R, h)
    if b is not None:
        raw = raw + b
    i, f, z, o = raw.unbind(1)
    log_f = logsigmoid(f) if forget_gate == "sigmoid" else f
    fresh = (n == 0) | (log_f == -torch.inf)  # nothing to remember: per element, whatever its neighbours do

    m_new = torch.where(fresh, i, torch.maximum(i, log_f + m)).detach()  # (S1)
    m_new = torch.where(m_new == -torch.inf, torch.zeros_like(m_new), m_new)  # fresh, and the input gate closed: stays fresh
    write = torch.exp(i - m_new)  # (S2)
    forget = torch.exp(torch.where(fresh, torch.full_like(c, -torch.inf), log_f + m - m_new))

    c = forget * c + write * torch.tanh(z)  # (S3)
    n = forget * n + write
    h = torch.sigmoid(o) * c / torch.where(n == 0, torch.ones_like(n), n)
    return h, (h, c, n, m_new)


def slstm(
    x: Tensor, R: Tensor, b: Tensor | None, state: State, *, reset: Tensor | None = None, forget_gate: str = "sigmoid"
) -> tuple[Tensor, State]:
    """A sequence: x (B, S, 4, NH, DH); reset (B, S) bool starts a sample afresh before that step."""
    if x.shape[1] == 0:  # as in mlstm: the state passes through, every input is part of the graph
        h, c, n, m = state
        gauge = torch.exp(m - m.detach())
        unused = sum(w[..., :0].sum() for w in (R, b) if w is not None)
        return x[:, :, 0] + unused, (h.clone(), c * gauge, n * gauge, m.clone())
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            keep = ~reset[:, t, None, None]
            state = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in state)  # type: ignore[assignment]
        h, state = slstm_step(x[:, t], R, b, state, forget_gate=forget_gate)
        outputs.append(h)
    return torch.stack(outputs, 1), state
