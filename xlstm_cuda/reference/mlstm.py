"""mLSTM, equations M1-M3 of csrc/mlstm/README.md, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

State = tuple[Tensor, Tensor, Tensor]  # C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: State,
    *,
    scale: float,
    igate: str = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
    normalizer_grad: str = "exact",
) -> tuple[Tensor, State]:
    """One token: q, k (B, NH, DHQK), v (B, NH, DHHV), gates i, f (B, NH), all of the state's dtype.

    Returns h (B, NH, DHHV) and the new state. m is computed without gradient (it is a gauge).
    """
    C, n, m = state
    log_f = logsigmoid(f)
    if igate == "exp":
        log_i = i
        m_new = torch.maximum(log_f + m, log_i).detach()  # (M1)
        m_new = torch.where(m_new == -torch.inf, torch.zeros_like(m_new), m_new)  # both gates closed: fresh
    else:
        log_i = logsigmoid(i)
        m_new = torch.zeros_like(m).detach()
    forget = torch.exp(log_f + m - m_new)
    write = torch.exp(log_i - m_new)

    C = forget[..., None, None] * C + write[..., None, None] * (k[..., :, None] * v[..., None, :])  # (M2)
    n = forget[..., None] * n + write[..., None] * k

    # (M3), numerator and denominator times exp(min(m, 0)), so that no exponent is positive.
    numerator = scale * torch.einsum("bhk,bhkv->bhv", q, C)
    if not normalize:
        return numerator, (C, n, m_new)
    dot = scale * torch.einsum("bhk,bhk->bh", q, n)
    if normalizer_grad == "detached":
        dot = dot.detach()
    shrink, floor = torch.exp(m_new.clamp(max=0)), torch.exp(-m_new.clamp(min=0))
    denominator = torch.maximum(dot.abs() * shrink, floor) + eps * shrink
    # A denominator below the normal numbers (eps = 0, m > 87 in float32) has no inverse: h is 0 and passes no gradient.
    empty = denominator < torch.finfo(denominator.dtype).tiny
    shrink = shrink.masked_fill(empty, 0.0)  # multiplied, so that a NaN of the numerator stays one
    h = numerator * shrink[..., None] / denominator.masked_fill(empty, 1.0)[..., None]
    return h, (C, n, m_new)


def mlstm(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, *, reset: Tensor | None = None, **options
) -> tuple[Tensor, State]:
    """A sequence: q, k (B, S, NH, DHQK), v (B, S, NH, DHHV), gates (B, S, NH); options as in `mlstm_step`.

    reset (B, S) bool starts a sample afresh before that step.
    """
    if q.shape[1] == 0:
        return _no_steps(q, k, v, i, f, state)
    outputs = []
    for t, (q_t, k_t, v_t, i_t, f_t) in enumerate(zip(*(x.unbind(1) for x in (q, k, v, i, f)))):
        if reset is not None:
            state = _fresh_where(reset[:, t], state)
        h, state = mlstm_step(q_t, k_t, v_t, i_t, f_t, state, **options)
        outputs.append(h)
    return torch.stack(outputs, 1), state


def _fresh_where(reset: Tensor, state: State) -> State:
    """The state of the samples that go on, zeros in the others; reset (B)."""
    C, n, m = (part.masked_fill(reset.view(-1, *[1] * (part.dim() - 1)), 0) for part in state)
    return C, n, m


def _no_steps(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State) -> tuple[Tensor, State]:
    """The state passes through; every input is part of the graph, so that its gradient is zero and not missing."""
    C, n, m = state
    gauge = torch.exp(m - m.detach())  # 1, and carries dm0 = <C0, dC0> + <n0, dn0> as every step does
    h = v + sum(x.sum() for x in (q, k, i, f))
    return h, (C * gauge[..., None, None], n * gauge[..., None], m.clone())
