"""The walks dQ, dK, dV and the gate gradients (M7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .buckets import buckets
from .gates import Gates, scan_gates, visible, weights
from .layout import Layout
from .normalizer import normalizer_of
from .options import Options
from .states import State, bmm, fresh_state, states_forward, states_reverse


def backward(
    dh: Tensor | None,
    dC: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    given: State | None,
    cu_seqlens: Tensor | None,
    h: Tensor,
    dot: Tensor,
    C: Tensor,
    n: Tensor,
    options: Options,
    exact: bool,
) -> tuple[Tensor, ...]:
    """dq, dk, dv, di, df in the dtypes of q, k, v, i, f, and dC0, dn0, dm0, undefined unless a state is given.

    A missing incoming gradient is zero.
    """
    states_matter = given is not None or dC is not None or dn is not None
    initial = given or fresh_state(q, v, cu_seqlens)
    dh = torch.zeros_like(h) if dh is None else dh
    dC = torch.zeros_like(C) if dC is None else dC
    dn = torch.zeros_like(n) if dn is None else dn
    if cu_seqlens is None:
        return _backward_rows(dh, dC, dn, q, k, v, i, f, initial, h, dot, options, exact, states_matter)
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, i, f)]
    dinitial = [dC.clone(), dn.clone(), (initial[0] * dC).sum((-1, -2)) + (initial[1] * dn).sum(-1)]
    for bucket in buckets(cu_seqlens, q.shape[1]):
        q_, k_, v_, dh_, h_, dot_ = (bucket.take(x, 0.0) for x in (q, k, v, dh, h, dot))
        i_, f_ = bucket.take(i, -torch.inf), bucket.take(f, torch.inf)
        results = _backward_rows(
            dh_, bucket.take_rows(dC), bucket.take_rows(dn),
            q_, k_, v_, i_, f_, bucket.take_state(initial), h_, dot_, options, exact, states_matter,
        )  # fmt: skip
        for whole, part in zip(gradients, results[:5]):
            bucket.put(whole, part)
        for whole, part in zip(dinitial, results[5:]):
            bucket.put_rows(whole, part)
    return *gradients, *dinitial


def _backward_rows(
    dh: Tensor, dC: Tensor, dn: Tensor, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    initial: State, h: Tensor, dot: Tensor, options: Options, exact: bool, states_matter: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """A plain batch: dq, dk, dv, di, df, dC0, dn0, dm0.

    states_matter: an initial state is given, or the final one has a gradient.
    """
    (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], initial[0].dtype
    if B * S == 0:
        dm = (initial[0] * dC).sum((-1, -2)) + (initial[1] * dn).sum(-1)
        return *(torch.zeros_like(x) for x in (q, k, v, i, f)), dC.clone(), dn.clone(), dm
    layout = Layout.of(B, S, NH, options)
    Q, K, V, dH = (layout.cut(x, dtype) for x in (q, k, v, dh))
    C, n, m0 = (s.flatten(0, 1) for s in initial)
    dC, dn = dC.flatten(0, 1), dn.flatten(0, 1)
    gates = scan_gates(layout.cut(i, torch.float64, -torch.inf), layout.cut(f, torch.float64, torch.inf), m0, options.igate)
    dot64 = layout.cut(dot, torch.float64)
    normalizer = normalizer_of(dot64, gates.m, options, dtype)
    r = (options.scale * normalizer.factor).to(dtype)
    delta = None  # the gradient of the normaliser, a rank-one term beside dH V^T
    if exact and options.normalize:
        along = (dH * layout.cut(h, dtype)).sum(-1)
        delta = -along * (dot64.sign() * normalizer.active).to(dtype)
    rdH = dH * r.unsqueeze(-1)
    dQ, dK, dV = torch.empty_like(Q), torch.empty_like(K), torch.empty_like(V)
    border = torch.empty_like(gates.g, dtype=torch.float64)  # <C_k, dC_k> + <n_k, dn_k> at the end of every chunk
    alone = layout.NC == 1 and not states_matter

    groups = layout.groups(DHQK, DHHV, V.element_size())
    starts = _group_starts(K, V, gates, groups, C, n)
    for group, (C, n) in zip(reversed(groups), reversed(starts)):
        Qg, Kg, Vg, rdHg = Q[group], K[group], V[group], rdH[group]
        W = weights(gates, group)
        P = bmm(Qg, Kg.transpose(-1, -2)).mul_(W)
        dP = bmm(rdHg, Vg.transpose(-1, -2))
        rdelta = None if delta is None else r[group] * delta[group]
        if rdelta is not None:
            dP.add_(rdelta.unsqueeze(-1))
        dP.mul_(W)
        dQg, dKg, dVg = bmm(dP, Kg), bmm(dP.transpose(-1, -2), Qg), bmm(P.transpose(-1, -2), rdHg)
        if alone:
            border[group] = 0.0
        else:
            w, u, g = (x[group] for x in (gates.w, gates.u, gates.g))
            Cs, ns = states_forward(C, n, Kg, Vg, w, g)
            dCs, dns = states_reverse(dC, dn, Qg, rdHg, rdelta, u, g)
            from_start = bmm(rdHg, Cs[:-1].transpose(-1, -2))
            if rdelta is not None:
                from_start.addcmul_(rdelta.unsqueeze(-1), ns[:-1].unsqueeze(-2))
            dQg.addcmul_(from_start, u.unsqueeze(-1))
            to_end = bmm(Vg, dCs[1:].transpose(-1, -2)).add_(dns[1:].unsqueeze(-2))
            dKg.addcmul_(to_end, w.unsqueeze(-1))
            dVg.add_(bmm(Kg * w.unsqueeze(-1), dCs[1:]))
            border[group] = ((Cs[1:] * dCs[1:]).sum((-1, -2)) + (ns[1:] * dns[1:]).sum(-1)).double()
            dC, dn = dCs[0], dns[0]
        dQ[group], dK[group], dV[group] = dQg, dKg, dVg

    k_dk = (K * dK).sum(-1).double()
    dlog_f = _sum_from_each_step((Q * dQ).sum(-1).double() - k_dk, border, gates)
    di, df = (layout.join(x, torch.float64) for x in (k_dk, dlog_f))
    df *= torch.sigmoid(-f.double())
    if options.igate == "sigmoid":
        di *= torch.sigmoid(-i.double())
    dC0, dn0 = dC.view_as(initial[0]).clone(), dn.view_as(initial[1]).clone()
    dm0 = (initial[0] * dC0).sum((-1, -2)) + (initial[1] * dn0).sum(-1)
    dq, dk, dv = (layout.join(x, like.dtype) for x, like in ((dQ, q), (dK, k), (dV, v)))
    return dq, dk, dv, di.to(i.dtype), df.to(f.dtype), dC0, dn0, dm0


def _group_starts(K: Tensor, V: Tensor, gates: Gates, groups: list[slice], C: Tensor, n: Tensor) -> list[tuple[Tensor, Tensor]]:
    """C, n at the start of every group, by the same updates as the forward walk."""
    starts = [(C, n)]
    for group in groups[:-1]:
        Cs, ns = states_forward(*starts[-1], K[group], V[group], gates.w[group], gates.g[group])
        starts.append((Cs[-1], ns[-1]))
    return starts


def _sum_from_each_step(x: Tensor, border: Tensor, gates: Gates) -> Tensor:
    """Gradient of log f: the sum of x over the rest of the step's segment, plus the border term where the segment goes on.

    Border terms restart the sum in every chunk, so that its rounding error does not grow with S.
    """
    if not gates.resets:
        return x.flip(-1).cumsum(-1).flip(-1) + border.unsqueeze(-1)
    segment = gates.segment
    rest = visible(segment).transpose(-1, -2)
    total = (x.unsqueeze(-2) * rest).sum(-1) + torch.where(segment == segment[..., -1:], border.unsqueeze(-1), 0.0)
    first = segment != pad(segment, (1, 0))[..., :-1]  # a reset forgets everything, so its own gate has no gradient
    return total.masked_fill(first, 0.0)
