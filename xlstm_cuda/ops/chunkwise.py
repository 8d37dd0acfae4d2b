"""The mLSTM on a CPU: the four chunkwise walks H, dQ, dK, dV on batched PyTorch matmuls (M4-M6 in csrc/mlstm/README.md).

Chunks lie on the leading axis, (NC, R, L, D) with R = B*NH rows, so that a group of chunks is one slice and one batched matmul.
Everything inside a chunk is one matmul over all chunks of a group; only the states go from chunk to chunk in a loop. Groups bound
the workspace, so memory is O(S). Gates are scanned in float64 (it is O(S) work); matmuls run in float32, or float64 for float64
inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

State = tuple[Tensor, Tensor, Tensor]  # C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)

WORKSPACE_BYTES = 48 << 20  #: per group of chunks; a group has at least one chunk


@dataclass(frozen=True)
class Options:
    """The options of `functional.mlstm` that change the numbers."""

    scale: float
    igate: str
    normalize: bool
    eps: float
    chunk_size: int | None


# ---------------------------------------------------------------- gates (M4-M6)


class Gates(NamedTuple):
    """The gate scan of all chunks, float64; t and j are steps of one chunk, a weight is exp of a number that is at most 0.

    A forget gate of -inf starts a new segment inside its chunk: weights between segments are exactly 0.
    """

    beta: Tensor  #: (NC, R, L) i_j - b_j; -inf where the input gate is closed
    rise: Tensor  #: (NC, R, L) m_t - b_t, so that W_tj = exp(beta_j - rise_t)
    m: Tensor  #: (NC, R, L) m_t (M6)
    u: Tensor  #: (NC, R, L) exp(b_t + m_{k-1} - m_t), what is left at t of the chunk's initial state
    w: Tensor  #: (NC, R, L) exp(a_j - m_k), what step j leaves in the chunk's final state
    g: Tensor  #: (NC, R) exp(G + m_{k-1} - m_k), what is left of the initial state in the final one
    m_last: Tensor  #: (R,) m after the last chunk
    segment: Tensor | None  #: (NC, R, L) number of resets up to t inside the chunk; None when there is none anywhere


def scan_gates(i: Tensor, f: Tensor, m0: Tensor, igate: str) -> Gates:
    """i, f (NC, R, L) float64, padded with i = -inf, f = +inf; m0 (R,)."""
    log_i, log_f = (i if igate == "exp" else logsigmoid(i)), logsigmoid(f)
    reset = log_f == -torch.inf
    segment = reset.cumsum(-1) if bool(reset.any()) else None
    if segment is not None:
        log_f = log_f.masked_fill(reset, 0.0)
    b = log_f.cumsum(-1)
    beta = log_i - b
    total = b[..., -1]
    in_last = None if segment is None else segment == segment[..., -1:]
    passes = None if segment is None else segment[..., -1] == 0  # the initial state reaches the chunk's end

    if igate == "sigmoid":  # m = 0 everywhere, but an incoming m0 still scales the incoming state
        m_before = torch.zeros_like(total)
        m_before[0] = m0
        m_after = torch.zeros_like(total)
        m_last = torch.zeros_like(m0)
        rise = -b
    else:
        # A reset with a closed input gate leaves the fresh state, whose m is 0.
        level = beta if segment is None else torch.where(reset & (beta == -torch.inf), -b, beta)
        if segment is None:
            highest = level.cummax(-1).values
        else:
            highest = (
                level.unsqueeze(-2).masked_fill(~_visible(segment, level.shape[-1]), -torch.inf).amax(-1)
            )  # (NC, R, t, j) -> (NC, R, t)
        top = total + highest[..., -1]
        borders = [m0.double()]
        for k in range(total.shape[0]):
            carried = total[k] + borders[-1]
            if passes is not None:
                carried = carried.masked_fill(~passes[k], -torch.inf)
            m_k = torch.maximum(carried, top[k])  # (M5)
            # Rounded to the state's precision, so that a sequence split at a chunk border gives the same bits.
            borders.append(torch.where(m_k == -torch.inf, 0.0, m_k).to(m0.dtype).double())
        m_before, m_after, m_last = torch.stack(borders[:-1]), torch.stack(borders[1:]), borders[-1].to(m0.dtype)
        start = m_before.unsqueeze(-1)
        if segment is not None:
            start = torch.where(segment == 0, start, -torch.inf)
        rise = torch.maximum(start, highest)  # (M6)
        rise = torch.where(rise == -torch.inf, -b, rise)

    m = b + rise
    u = torch.exp(m_before.unsqueeze(-1) - rise)
    w = torch.exp(total.unsqueeze(-1) + beta - m_after.unsqueeze(-1))
    g = torch.exp(total + m_before - m_after)
    if segment is not None:
        u, w, g = u * (segment == 0), w * in_last, g * passes
    return Gates(beta, rise, m, u, w, g, m_last, segment)


def _visible(segment: Tensor | None, L: int) -> Tensor:
    """(..., t, j): step j is seen from step t, that is j <= t and no reset between them."""
    causal = torch.ones(L, L, dtype=torch.bool).tril()
    return causal if segment is None else causal & (segment.unsqueeze(-1) == segment.unsqueeze(-2))


def _weights(gates: Gates, group: slice, dtype: torch.dtype) -> Tensor:
    """W_tj of a group of chunks, (G, R, L, L), 0 where j is not seen from t."""
    exponent = gates.beta[group].unsqueeze(-2) - gates.rise[group].unsqueeze(-1)
    segment = None if gates.segment is None else gates.segment[group]
    exponent.masked_fill_(~_visible(segment, exponent.shape[-1]), -torch.inf)
    return exponent.to(dtype).exp_()


class Normalizer(NamedTuple):
    """What (M3) makes of the dot product s q.n: h = s q C * factor; ``active`` where the dot product is above the floor."""

    factor: Tensor
    active: Tensor


def _normalizer(dot: Tensor, m: Tensor, options: Options) -> Normalizer:
    """dot, m of any one shape, float64. Written so that exp(-m) cannot overflow."""
    if not options.normalize:
        return Normalizer(torch.ones_like(dot), torch.zeros_like(dot, dtype=torch.bool))
    shrink, floor = m.clamp(max=0).exp(), m.clamp(min=0).neg().exp()
    size = dot.abs() * shrink
    denominator = torch.maximum(size, floor) + options.eps * shrink
    factor = torch.where(denominator == 0, 0.0, shrink / denominator)
    return Normalizer(factor, size > floor)


# ---------------------------------------------------------------- layout


class Layout(NamedTuple):
    """How a batch (B, S, NH, D) is cut into chunks (NC, B*NH, L, D)."""

    B: int
    S: int
    NH: int
    L: int
    NC: int

    def cut(self, x: Tensor, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
        """(B, S, NH, ...) -> (NC, R, L, ...), the tail chunk filled up."""
        x = x.to(dtype)
        if missing := self.NC * self.L - self.S:
            x = pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=fill)
        x = x.reshape(self.B, self.NC, self.L, self.NH, *x.shape[3:]).movedim((1, 0, 3, 2), (0, 1, 2, 3))
        return x.reshape(self.NC, self.B * self.NH, self.L, *x.shape[4:])

    def join(self, x: Tensor) -> Tensor:
        """(NC, R, L, ...) -> (B, S, NH, ...)."""
        x = x.reshape(self.NC, self.B, self.NH, self.L, *x.shape[3:]).movedim((0, 1, 2, 3), (1, 0, 3, 2))
        return x.reshape(self.B, self.NC * self.L, self.NH, *x.shape[4:])[:, : self.S]

    def groups(self, DHQK: int, DHHV: int, element_size: int) -> list[slice]:
        """Slices of chunks whose workspace (weights, scores, states, outputs) fits in WORKSPACE_BYTES."""
        per_row = 3 * self.L * self.L + 2 * DHQK * DHHV + 3 * self.L * (DHQK + DHHV)
        size = max(1, WORKSPACE_BYTES // (element_size * self.B * self.NH * per_row))
        return [slice(k, min(k + size, self.NC)) for k in range(0, self.NC, size)]


def _layout(B: int, S: int, NH: int, options: Options) -> Layout:
    L = options.chunk_size or 64
    return Layout(B, S, NH, L, -(-S // L))


# ---------------------------------------------------------------- states, chunk by chunk


def _states_forward(C: Tensor, n: Tensor, update: Tensor, n_update: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """States at every chunk border of a group, (G+1, R, DHQK, DHHV) and (G+1, R, DHQK); update (G, R, ...), g (G, R)."""
    Cs, ns = update.new_empty(len(g) + 1, *C.shape), n_update.new_empty(len(g) + 1, *n.shape)
    Cs[0], ns[0] = C, n
    for k in range(len(g)):
        torch.addcmul(update[k], Cs[k], g[k, :, None, None], out=Cs[k + 1])
        torch.addcmul(n_update[k], ns[k], g[k, :, None], out=ns[k + 1])
    return Cs, ns


def _states_reverse(dC: Tensor, dn: Tensor, update: Tensor, n_update: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the states at every chunk border of a group, from those at its end; shapes as in `_states_forward`."""
    dCs, dns = update.new_empty(len(g) + 1, *dC.shape), n_update.new_empty(len(g) + 1, *dn.shape)
    dCs[-1], dns[-1] = dC, dn
    for k in reversed(range(len(g))):
        torch.addcmul(update[k], dCs[k + 1], g[k, :, None, None], out=dCs[k])
        torch.addcmul(n_update[k], dns[k + 1], g[k, :, None], out=dns[k])
    return dCs, dns


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched matmul over the two leading axes (chunks and rows)."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:2], a.shape[2], b.shape[3])


# ---------------------------------------------------------------- forward


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial: State, cu_seqlens: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h in v's dtype, the final C, n, m, and the dot products s q.n (B, S, NH) that the backward needs."""
    C0, _n0, _m0 = initial
    h, dot = torch.empty_like(v, memory_format=torch.contiguous_format), i.new_empty(i.shape, dtype=C0.dtype)
    last = tuple(s.clone() for s in initial)
    for bucket in _buckets(cu_seqlens, q.shape[1]):
        results = _forward_rows(*(bucket.take(x, fill) for x, fill in zip((q, k, v, i, f), (0.0, 0.0, 0.0, -torch.inf, torch.inf))),
                                bucket.rows_of(initial), options)  # fmt: skip
        bucket.put(h, results[0])
        bucket.put(dot, results[1])
        for whole, part in zip(last, results[2:]):
            bucket.put_rows(whole, part)
    return h, *last, dot


def _forward_rows(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, initial: State, options: Options) -> tuple[Tensor, ...]:
    """A plain batch: h, dot, C, n, m."""
    (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], initial[0].dtype
    if B * S == 0:
        return torch.empty_like(v), i.to(dtype), *(s.clone() for s in initial)
    layout = _layout(B, S, NH, options)
    Q, K, V = (layout.cut(x, dtype) for x in (q, k, v))
    C, n, m0 = (s.flatten(0, 1) for s in initial)
    I, F = layout.cut(i, torch.float64, -torch.inf), layout.cut(f, torch.float64, torch.inf)
    poison = _poison(K, V, I, F)
    gates = scan_gates(I, F, m0, options.igate)
    H, dots = torch.empty_like(V), Q.new_empty(Q.shape[:3], dtype=torch.float64)

    for group in layout.groups(DHQK, DHHV, V.element_size()):
        Qg, Kg, Vg = Q[group], K[group], V[group]
        wK = Kg * gates.w[group].to(dtype).unsqueeze(-1)
        g = gates.g[group].to(dtype)
        Cs, ns = _states_forward(C, n, _bmm(wK.transpose(-1, -2), Vg), wK.sum(-2), g)  # (M2), chunk by chunk
        P = _bmm(Qg, Kg.transpose(-1, -2)).mul_(_weights(gates, group, dtype))
        u = gates.u[group].to(dtype)
        numerator = _bmm(P, Vg).addcmul_(_bmm(Qg, Cs[:-1]), u.unsqueeze(-1))
        dots[group] = options.scale * (P.sum(-1) + u * _bmm(Qg, ns[:-1].unsqueeze(-1)).squeeze(-1)).double()
        factor = options.scale * _normalizer(dots[group], gates.m[group], options).factor
        H[group] = numerator.mul_(factor.to(dtype).unsqueeze(-1))  # (M3)
        C, n = Cs[-1], ns[-1]

    m = gates.m_last
    if poison is not None:
        H.masked_fill_(poison.unsqueeze(-1), torch.nan)
        C, n, m = (s.clone().masked_fill_(poison[-1, :, -1].view(-1, *(1,) * (s.dim() - 1)), torch.nan) for s in (C, n, m))
    state = (x.view_as(like).clone() for x, like in zip((C, n, m), initial))
    return layout.join(H).to(v.dtype), layout.join(dots).to(dtype), *state


def _poison(K: Tensor, V: Tensor, I: Tensor, F: Tensor) -> Tensor | None:
    """(NC, R, L): the steps that a NaN or infinity in k, v or a gate has reached; None when there is none.

    A matmul multiplies it with the zeros of the causal mask, so it would reach back inside its chunk. The operands are cleaned in
    place (they are this backend's copies) and the caller writes NaN from the step on.
    """
    if bool((K.sum() + V.sum()).isfinite()) and not bool(I.isnan().any() | F.isnan().any() | (I == torch.inf).any()):
        return None
    bad = ~(K.isfinite().all(-1) & V.isfinite().all(-1)) | I.isnan() | (I == torch.inf) | F.isnan()
    for x in (K, V):
        x.masked_fill_(bad.unsqueeze(-1), 0.0)
    I.masked_fill_(bad, -torch.inf)
    F.masked_fill_(bad, torch.inf)
    before = bad.any(-1).cumsum(0) - bad.any(-1).long()  # chunks before this one that hold a bad step
    return (bad.cumsum(-1) + before.unsqueeze(-1)) > 0


# ---------------------------------------------------------------- backward


def backward(
    dh: Tensor | None,
    dC: Tensor | None,
    dn: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial: State,
    cu_seqlens: Tensor | None,
    h: Tensor,
    dot: Tensor,
    C: Tensor,
    n: Tensor,
    options: Options,
    exact: bool,
) -> tuple[Tensor, ...]:
    """dq, dk, dv, di, df in the dtypes of q, k, v, i, f, and dC0, dn0, dm0. A missing incoming gradient is zero."""
    dh = torch.zeros_like(h) if dh is None else dh
    dC = torch.zeros_like(C) if dC is None else dC
    dn = torch.zeros_like(n) if dn is None else dn
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, i, f)]
    dinitial = [dC.clone(), dn.clone(), (initial[0] * dC).sum((-1, -2)) + (initial[1] * dn).sum(-1)]
    for bucket in _buckets(cu_seqlens, q.shape[1]):
        q_, k_, v_, dh_, h_, dot_ = (bucket.take(x, 0.0) for x in (q, k, v, dh, h, dot))
        i_, f_ = bucket.take(i, -torch.inf), bucket.take(f, torch.inf)
        results = _backward_rows(
            dh_, *bucket.rows_of((dC, dn)), q_, k_, v_, i_, f_, bucket.rows_of(initial), h_, dot_, options, exact
        )
        for whole, part in zip(gradients, results[:5]):
            bucket.put(whole, part)
        for whole, part in zip(dinitial, results[5:]):
            bucket.put_rows(whole, part)
    return *gradients, *dinitial


def _backward_rows(
    dh: Tensor, dC: Tensor, dn: Tensor, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    initial: State, h: Tensor, dot: Tensor, options: Options, exact: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """A plain batch: dq, dk, dv, di, df, dC0, dn0, dm0."""
    (B, S, NH, DHQK), DHHV, dtype = q.shape, v.shape[-1], initial[0].dtype
    if B * S == 0:
        dm = (initial[0] * dC).sum((-1, -2)) + (initial[1] * dn).sum(-1)
        return *(torch.zeros_like(x) for x in (q, k, v, i, f)), dC.clone(), dn.clone(), dm
    layout = _layout(B, S, NH, options)
    Q, K, V, dH = (layout.cut(x, dtype) for x in (q, k, v, dh))
    C, n, m0 = (s.flatten(0, 1) for s in initial)
    dC, dn = dC.flatten(0, 1), dn.flatten(0, 1)
    gates = scan_gates(layout.cut(i, torch.float64, -torch.inf), layout.cut(f, torch.float64, torch.inf), m0, options.igate)
    dot64 = layout.cut(dot, torch.float64)
    normalizer = _normalizer(dot64, gates.m, options)
    r = (options.scale * normalizer.factor).to(dtype)
    delta = None  # the gradient of the normaliser, a rank-one term beside dH V^T
    if exact and options.normalize:
        along = (dH * layout.cut(h, dtype)).sum(-1)
        delta = -along * (dot64.sign() * normalizer.active).to(dtype)
    rdH = dH * r.unsqueeze(-1)
    dQ, dK, dV = torch.empty_like(Q), torch.empty_like(K), torch.empty_like(V)
    border = torch.empty_like(gates.g)  # <C_k, dC_k> + <n_k, dn_k> at the end of every chunk

    groups = layout.groups(DHQK, DHHV, V.element_size())
    starts = _group_starts(K, V, gates, groups, C, n)
    for group, (C, n) in zip(reversed(groups), reversed(starts)):
        Qg, Kg, Vg, rdHg = Q[group], K[group], V[group], rdH[group]
        w, u, g = (x[group].to(dtype) for x in (gates.w, gates.u, gates.g))
        wK, uQ = Kg * w.unsqueeze(-1), Qg * u.unsqueeze(-1)
        Cs, ns = _states_forward(C, n, _bmm(wK.transpose(-1, -2), Vg), wK.sum(-2), g)
        W = _weights(gates, group, dtype)
        P = _bmm(Qg, Kg.transpose(-1, -2)).mul_(W)
        dP = _bmm(rdHg, Vg.transpose(-1, -2))
        n_update = torch.zeros_like(ns[1:])
        if delta is not None:
            rdelta = (r[group] * delta[group]).unsqueeze(-1)
            dP.add_(rdelta)
            n_update = (rdelta * uQ).sum(-2)
        dP.mul_(W)
        dCs, dns = _states_reverse(dC, dn, _bmm(uQ.transpose(-1, -2), rdHg), n_update, g)

        from_start = _bmm(rdHg, Cs[:-1].transpose(-1, -2))
        if delta is not None:
            from_start.addcmul_(rdelta, ns[:-1].unsqueeze(-2))
        dQ[group] = _bmm(dP, Kg).addcmul_(from_start, u.unsqueeze(-1))
        to_end = _bmm(Vg, dCs[1:].transpose(-1, -2)).add_(dns[1:].unsqueeze(-2))
        dK[group] = _bmm(dP.transpose(-1, -2), Qg).addcmul_(to_end, w.unsqueeze(-1))
        dV[group] = _bmm(P.transpose(-1, -2), rdHg).add_(_bmm(wK, dCs[1:]))
        border[group] = ((Cs[1:] * dCs[1:]).sum((-1, -2)) + (ns[1:] * dns[1:]).sum(-1)).double()
        dC, dn = dCs[0], dns[0]

    k_dk = (K * dK).sum(-1).double()
    dlog_f = _sum_from_each_step((Q * dQ).sum(-1).double() - k_dk, border, gates.segment)
    di, df = layout.join(k_dk), layout.join(dlog_f) * torch.sigmoid(-f.double())
    if options.igate == "sigmoid":
        di = di * torch.sigmoid(-i.double())
    dC0, dn0 = dC.view_as(initial[0]).clone(), dn.view_as(initial[1]).clone()
    dm0 = (initial[0] * dC0).sum((-1, -2)) + (initial[1] * dn0).sum(-1)
    return *(layout.join(x) for x in (dQ, dK, dV)), di, df, dC0, dn0, dm0


def _group_starts(K: Tensor, V: Tensor, gates: Gates, groups: list[slice], C: Tensor, n: Tensor) -> list[tuple[Tensor, Tensor]]:
    """C, n at the start of every group, by the same updates as the forward walk."""
    starts = [(C, n)]
    for group in groups[:-1]:
        wK = K[group] * gates.w[group].to(K.dtype).unsqueeze(-1)
        update = _bmm(wK.transpose(-1, -2), V[group])
        Cs, ns = _states_forward(*starts[-1], update, wK.sum(-2), gates.g[group].to(K.dtype))
        starts.append((Cs[-1], ns[-1]))
    return starts


def _sum_from_each_step(x: Tensor, border: Tensor, segment: Tensor | None) -> Tensor:
    """Gradient of log f: the sum of x over the rest of the step's segment, plus the border term where the segment goes on.

    Border terms restart the sum in every chunk, so that its rounding error does not grow with S.
    """
    if segment is None:
        return x.flip(-1).cumsum(-1).flip(-1) + border.unsqueeze(-1)
    rest = _visible(segment, x.shape[-1]).transpose(-1, -2)
    total = (x.unsqueeze(-2) * rest).sum(-1) + torch.where(segment == segment[..., -1:], border.unsqueeze(-1), 0.0)
    first = segment != pad(segment, (1, 0))[..., :-1]  # a reset forgets everything, so its own gate has no gradient
    return total.masked_fill(first, 0.0)


# ---------------------------------------------------------------- one token


def step(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, options: Options) -> tuple[Tensor, ...]:
    """M1-M3 for one token; q, k (B, NH, DHQK), v (B, NH, DHHV), i, f (B, NH). Returns h and new C, n, m."""
    C, n, m = state
    dtype = C.dtype
    log_f = logsigmoid(f.to(dtype))
    if options.igate == "exp":
        log_i = i.to(dtype)
        m_new = torch.maximum(log_f + m, log_i)
        m_new = m_new.masked_fill(m_new == -torch.inf, 0.0)
    else:
        log_i, m_new = logsigmoid(i.to(dtype)), torch.zeros_like(m)
    forget, write = torch.exp(log_f + m - m_new).unsqueeze(-1), torch.exp(log_i - m_new).unsqueeze(-1)
    written, q = write * k.to(dtype), q.to(dtype)
    C = torch.addcmul(C * forget.unsqueeze(-1), written.unsqueeze(-1), v.to(dtype).unsqueeze(-2))
    n = torch.addcmul(written, n, forget)
    h = torch.matmul(q.unsqueeze(-2), C).squeeze(-2)
    dot = options.scale * (q * n).sum(-1)
    factor = options.scale * _normalizer(dot, m_new, options).factor
    return (h * factor.unsqueeze(-1)).to(v.dtype), C, n, m_new


# ---------------------------------------------------------------- sequences of different lengths


class Bucket:
    """Some rows of a batch as a plain padded batch. The whole batch is one bucket when cu_seqlens is not given."""

    def __init__(self, rows: Tensor | None = None, index: Tensor | None = None, real: Tensor | None = None):
        self.rows, self.index, self.real = rows, index, real  # (N',); (N', S') steps of the joint axis; which are real

    def take(self, x: Tensor, fill: float) -> Tensor:
        """(1, S, ...) -> (N', S', ...); steps after a sequence's end get ``fill``."""
        if self.index is None:
            return x
        out = x[0, self.index]
        out[~self.real] = fill
        return out

    def put(self, whole: Tensor, part: Tensor) -> None:
        """The inverse of `take`, into ``whole``."""
        if self.index is None:
            whole.copy_(part)
        else:
            whole[0, self.index[self.real]] = part[self.real].to(whole.dtype)

    def rows_of(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return state if self.rows is None else tuple(s[self.rows] for s in state)

    def put_rows(self, whole: Tensor, part: Tensor) -> None:
        if self.rows is None:
            whole.copy_(part)
        else:
            whole[self.rows] = part


def _buckets(cu_seqlens: Tensor | None, S: int) -> Iterator[Bucket]:
    """Sequences of similar length together, so that a padded batch is at most twice as long as what it holds."""
    if cu_seqlens is None:
        yield Bucket()
        return
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    by_length = lengths.argsort(stable=True)
    ordered = lengths[by_length].tolist()
    first = next((n for n, length in enumerate(ordered) if length > 0), len(ordered))  # an empty sequence passes its state on
    while first < len(ordered):
        end = first + 1
        while end < len(ordered) and ordered[end] <= 2 * ordered[first]:
            end += 1
        rows = by_length[first:end]
        steps = torch.arange(ordered[end - 1])
        real = steps < lengths[rows].unsqueeze(-1)
        yield Bucket(rows, (starts[rows].unsqueeze(-1) + steps).clamp(max=max(S - 1, 0)), real)
        first = end
