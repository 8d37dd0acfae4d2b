"""How right is right: the tolerance formulas, the same for every backend. The truth is the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}

# Root-mean-square ratios on conditioned inputs.
MLSTM_H = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 2e-6, torch.float64: 1e-12}
MLSTM_GRAD = {torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-11}
MLSTM_DF = {torch.bfloat16: 1.5e-2, torch.float16: 5e-3, torch.float32: 2e-5, torch.float64: 1e-11}
SLSTM_H = {torch.bfloat16: 4e-3, torch.float16: 6e-4, torch.float32: 1e-5, torch.float64: 1e-12}
SLSTM_GRAD = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 3e-5, torch.float64: 1e-11}


def for_few(allowed: float, count: int) -> float:
    """What a root-mean-square over only ``count`` numbers with independent errors may be: three standard deviations of one.

    The dm0 of a call is such a sum: one number for every row and head.
    """
    return allowed * (1 + 2 / max(count, 1) ** 0.5)


def rms_ratio(got: Tensor, true: Tensor, scale: Tensor | None = None) -> float:
    """Norm of the error over the norm of the truth (or of ``scale``, where the truth is what is left of terms that cancel)."""
    assert got.shape == true.shape, (got.shape, true.shape)
    got, true = got.detach().double(), true.detach().double()
    assert got.isfinite().all(), "not finite"
    error, size = (got - true).norm(), (true if scale is None else scale.detach().double()).norm()
    return float(error / size) if size > 0 else float(error)


def mlstm_conditioning(tensors: Sequence[Tensor], scale: float, result: Tensor) -> float:
    """How much larger than its own rounding the error of ``result`` (B, S, NH, D) may be for what cancels in d = q.n.

    Of one step: the root of the sum of the squares of |q_t| . |k_j| W_tj, whose roundings are independent, over |d_t|; 0 where
    the floor of the normaliser is active, which does not cancel. Over the steps: root mean square with the sizes of ``result``,
    because the steps with the smallest |d| are the largest. From (q, k, v, i, f) or with C0, n0, m0.
    """
    q, k, _, i, f = (x.detach().double().transpose(1, 2) for x in tensors[:5])
    S = q.shape[2]
    log_f = logsigmoid(f)
    later = torch.ones(S, S, dtype=torch.bool).tril(-1)
    decay = torch.where(later, log_f.unsqueeze(-1).expand(*log_f.shape, S), 0.0).cumsum(-2)
    exponent = torch.where(torch.ones(S, S, dtype=torch.bool).tril(), decay + i.unsqueeze(-2), -torch.inf)
    before = log_f.cumsum(-1)
    if len(tensors) > 5:
        before = before + tensors[7].detach().double().unsqueeze(-1)
    m = torch.maximum(exponent.amax(-1), before)
    m = torch.where(m == -torch.inf, 0.0, m)
    weights = torch.exp(exponent - m.unsqueeze(-1))
    dot = scale * (q @ k.transpose(-1, -2) * weights).sum(-1)
    squares = (scale * (q.abs() @ k.abs().transpose(-1, -2)) * weights).square().sum(-1)
    if len(tensors) > 5:
        n0, g = tensors[6].detach().double().unsqueeze(2), scale * torch.exp(before - m)
        dot = dot + g * (q * n0).sum(-1)
        squares = squares + (g * (q.abs() * n0.abs()).sum(-1)).square()
    of_step = torch.where(dot.abs() > (-m).exp(), squares.sqrt() / dot.abs(), 0.0).transpose(1, 2)
    size = result.detach().double().norm(dim=-1)
    return float((of_step * size).norm() / size.norm()) if size.any() else 0.0


def mlstm_forward_bound(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The componentwise bound u b + u |h| of the forward error, for any input from a fresh state; (B, S, NH, DHHV) float64.

    b is the sum of the absolute terms of h, plus what the error of an active normaliser makes of it.
    """
    q, k, v, i, f = (x.detach().double().transpose(1, 2) for x in (q, k, v, i, f))
    S = q.shape[2]
    log_f = logsigmoid(f)
    later = torch.ones(S, S, dtype=torch.bool).tril(-1)
    decay = torch.where(later, log_f.unsqueeze(-1).expand(*log_f.shape, S), 0.0).cumsum(-2)
    exponent = torch.where(torch.ones(S, S, dtype=torch.bool).tril(), decay + i.unsqueeze(-2), -torch.inf)
    m = torch.maximum(exponent.amax(-1), log_f.cumsum(-1))  # the fresh state's m = 0 decays too
    m = torch.where(m == -torch.inf, 0.0, m)
    weights = torch.exp(exponent - m.unsqueeze(-1))
    P = scale * (q @ k.transpose(-1, -2)) * weights
    P_abs = abs(scale) * (q.abs() @ k.abs().transpose(-1, -2)) * weights
    shrink, floor = m.clamp(max=0).exp(), m.clamp(min=0).neg().exp()
    dot = P.sum(-1).abs() * shrink
    denominator = torch.maximum(dot, floor)
    h = (P @ v) * (shrink / denominator).unsqueeze(-1)
    active = (dot > floor).double()
    b = (P_abs @ v.abs() + h.abs() * (P_abs.sum(-1) * active).unsqueeze(-1)) * (shrink / denominator).unsqueeze(-1)
    u = ROUNDING[dtype]
    if dtype == torch.float32:
        gates = torch.cat([i.flatten(), f.flatten()])
        largest = gates[gates.isfinite()].abs().max() if gates.isfinite().any() else 0.0
        bound = u * (16 + 2 * largest) * b
    else:
        bound = u * b
    return (bound + u * h.abs() + 1e-37).transpose(1, 2)
