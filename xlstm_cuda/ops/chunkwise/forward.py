"""The walk H: outputs and the final state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .buckets import buckets
from .gates import scan_gates, weights
from .layout import Layout
from .normalizer import normalizer_of
from .options import Options
from .states import State, bmm, fresh_state, states_forward


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    given: State | None, cu_seqlens: Tensor | None, options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """h in v's dtype, the final C, n, m, and the dot products s q.n (B, S, NH) that the backward needs."""
    initial = given or fresh_state(q, v, cu_seqlens)
    if cu_seqlens is None:
        return _forward_rows(q, k, v, i, f, initial, given is None, options)
    h, dot = torch.empty_like(v, memory_format=torch.contiguous_format), i.new_empty(i.shape, dtype=initial[0].dtype)
    C, n, m = (s.clone() for s in initial)
    for bucket in buckets(cu_seqlens, q.shape[1]):
        q_, k_, v_ = (bucket.take(x, 0.0) for x in (q, k, v))
        i_, f_ = bucket.take(i, -torch.inf), bucket.take(f, torch.inf)
        results = _forward_rows(q_, k_, v_, i_, f_, bucket.take_state(initial), given is None, options)
        bucket.put(h, results[0])
        bucket.put(dot, results[4])
        for whole, part in zip((C, n, m), results[1:4]):
            bucket.put_rows(whole, part)
    return h, C, n, m, dot


def _forward_rows(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial: State, fresh: bool, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A plain batch: h, C, n, m and dot as `forward` returns them."""
    (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], initial[0].dtype
    if B * S == 0:
        C, n, m = (s.clone() for s in initial)
        return v.new_empty(v.shape), C, n, m, i.new_empty(i.shape, dtype=dtype)
    layout = Layout.of(B, S, NH, options)
    alone = layout.NC == 1 and fresh  # nothing to read from a state
    Q, K, V = (layout.cut(x, dtype) for x in (q, k, v))
    C, n, m0 = (s.flatten(0, 1) for s in initial)
    I, F = layout.cut(i, torch.float64, -torch.inf), layout.cut(f, torch.float64, torch.inf)
    K, V, I, F, poison = _without_poison(K, V, I, F)
    gates = scan_gates(I, F, m0, options.igate)
    H, dots = torch.empty_like(V), Q.new_empty(Q.shape[:3], dtype=torch.float64)

    for group in layout.groups(DHQK, DHHV, V.element_size()):
        Qg, Kg, Vg = Q[group], K[group], V[group]
        Cs, ns = states_forward(C, n, Kg, Vg, gates.w[group], gates.g[group])
        P = bmm(Qg, Kg.transpose(-1, -2)).mul_(weights(gates, group))
        u = gates.u[group]
        numerator, dot = bmm(P, Vg), P.sum(-1)
        if not alone:
            numerator.addcmul_(bmm(Qg, Cs[:-1]), u.unsqueeze(-1))
            dot.addcmul_(bmm(Qg, ns[:-1].unsqueeze(-1)).squeeze(-1), u)
        dots[group] = options.scale * dot.double()
        factor = options.scale * normalizer_of(dots[group], gates.m[group], options, dtype).factor
        H[group] = numerator.mul_(factor.to(dtype).unsqueeze(-1))  # (M3)
        C, n = Cs[-1], ns[-1]

    m = gates.m_last
    if poison is not None:
        H.masked_fill_(poison.unsqueeze(-1), torch.nan)
        C, n, m = (s.clone().masked_fill_(poison[-1, :, -1].view(-1, *(1,) * (s.dim() - 1)), torch.nan) for s in (C, n, m))
    C, n, m = (x.view_as(like).clone() for x, like in zip((C, n, m), initial))
    return layout.join(H, v.dtype), C, n, m, layout.join(dots, dtype)


def _without_poison(K: Tensor, V: Tensor, I: Tensor, F: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The operands without NaN and infinities, and the steps (NC, R, L) that these have reached; None when there are none.

    A matmul multiplies a NaN with the zeros of the causal mask, so it would reach back inside its chunk. The caller writes NaN
    from the step on.
    """
    if math.isfinite(float(K.sum() + V.sum())) and float(I.amax()) < math.inf and float(F.amin()) >= -math.inf:
        return K, V, I, F, None  # no comparison holds for a NaN
    bad = ~(K.isfinite().all(-1) & V.isfinite().all(-1)) | I.isnan() | (I == torch.inf) | F.isnan()
    before = bad.any(-1).cumsum(0) - bad.any(-1).long()  # chunks before this one that hold a bad step
    reached = (bad.cumsum(-1) + before.unsqueeze(-1)) > 0
    K, V = (x.masked_fill(bad.unsqueeze(-1), 0.0) for x in (K, V))
    return K, V, I.masked_fill(bad, -torch.inf), F.masked_fill(bad, torch.inf), reached
