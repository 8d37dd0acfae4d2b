"""The mLSTM in its quadratic form, in numpy, with a backward derived by hand; it shares no line with `xlstm_cuda.reference`.

One sequence and head is a set of sources: every step j, and the state before the first step. The logarithm of what source j
weighs at step t is A_tj = li_j + lf_{j+1} + ... + lf_t, a sum that is built up row by row, never a difference of two sums. With
m_t = max_j A_tj (the state's is m0 + lf_1 + ... + lf_t):

    W_tj = exp(A_tj - m_t)    P_tj = s q_t.k_j W_tj    N_t = sum_j P_tj v_j    d_t = sum_j P_tj    h_t = r_t N_t

and every gradient of L = <h, Gh> + <C_last, GC> + <n_last, Gn> follows from dL/dN_t = r_t Gh_t and, where |d_t| is above
its floor, from dL/dd_t = -sign(d_t) r_t Gh_t.h_t. Gates take theirs from dA_tj, the weight times its gradient: di_j sums a
column, df_t the rectangle of rows from t on and columns before t. m is held constant: it is a gauge.

Beside every number come its *terms*: the same sums with every term's absolute value, and with what the errors of d_t and r_t make
of them. An implementation that makes a relative error u in every term and product is off by about u times that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Options:
    scale: float
    sigmoid: bool
    normalize: bool
    eps: float
    exact: bool  # the gradient of the normaliser
    tiny: float  # a denominator below it counts as 0
    unit: float  # relative error of one term, only to tell whether |d| is safely on one side of its floor
    least: float  # absolute error of a weight: below it exp may give 0
    least_product: float  # absolute error of a product of a weight, which may be kept in 16 bits
    unit_h: float  # relative error of the h that the backward reads
    unit_m: float  # relative error of m, which scales the returned C, n and the floor of the denominator


@dataclass
class Truth:
    value: dict[str, Array] = field(default_factory=dict)
    terms: dict[str, Array] = field(default_factory=dict)
    largest: float = 0.0  # number that an implementation has to hold
    largest_backward: float = 0.0
    conditioned: float = 1.0  # largest relative error of a denominator in units of `unit`
    undecided: bool = False  # a denominator lies on the border of what counts as 0


def log_sigmoid(x: Array) -> Array:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def log_weights(li: Array, lf: Array, m0: Array, sigmoid_gate: bool) -> tuple[Array, Array, Array]:
    """A (R, S, S), its column of the state (R, S), and m (R, S). li, lf (R, S), m0 (R,)."""
    rows, S = li.shape
    A = np.full((rows, S, S), -np.inf, li.dtype)
    of_state, m = np.empty_like(li), np.zeros_like(li)
    state = gauge = m0.astype(li.dtype)
    for t in range(S):
        A[:, t, t] = li[:, t]
        if t:
            A[:, t, :t] = A[:, t - 1, :t] + lf[:, t, None]
        state, gauge = state + lf[:, t], gauge + lf[:, t]
        of_state[:, t] = state
        if not sigmoid_gate:
            top = np.maximum(gauge, A[:, t].max(-1))
            gauge = np.where(top == -np.inf, 0, gauge)  # both gates closed: a fresh state, whose m is 0
            m[:, t] = np.where(top == -np.inf, 0, top)
    return A, of_state, m


def mlstm(q: Array, k: Array, v: Array, i: Array, f: Array, state: Any, G: Any, o: Options) -> Truth:
    """q, k (R, S, D), v (R, S, E), i, f (R, S); state C, n, m; G the gradients of h, C, n. A row is one sequence and head."""
    C0, n0, m0 = state
    Gh, GC, Gn = G
    truth, S = Truth(), q.shape[1]
    if S == 0:
        dm = (C0 * GC).sum((1, 2)) + (n0 * Gn).sum(1)
        nothing = {"h": v, "dq": q, "dk": k, "dv": v, "di": i, "df": f}
        truth.value = {"C": C0, "n": n0, "m": m0, "dC0": GC, "dn0": Gn, "dm0": dm, **nothing}
        truth.terms = {name: np.abs(x) for name, x in truth.value.items()}
        truth.terms["dm0"] = np.abs(C0 * GC).sum((1, 2)) + np.abs(n0 * Gn).sum(1)
        return truth
    li, lf, s = (log_sigmoid(i) if o.sigmoid else i), log_sigmoid(f), o.scale
    A, of_state, m = log_weights(li, lf, m0, o.sigmoid)
    W, U = np.exp(A - m[:, :, None]), np.exp(of_state - m)
    lower = np.tril(np.ones((S, S), bool))
    # an exponent is rounded too: |x| exp(x), which is small
    rounded = 0.5 * o.unit_m / o.unit
    W_terms = W * (1 + rounded * np.where(W > 0, np.abs(A - m[:, :, None]), 0)) + np.where(lower, o.least / o.unit, 0)
    # A state that arrives with m0 > 0 under a sigmoid gate is a large number, times a weight that may be below the normal ones.
    U_terms = U * (1 + rounded * np.where(U > 0, np.abs(of_state - m), 0)) + o.least_product / o.unit * (
        np.exp(np.maximum(m0, 0))[:, None] if o.sigmoid else 1
    )
    product = np.where(lower, o.least_product / o.unit, 0)

    QK, QK_terms = s * (q @ k.swapaxes(1, 2)), abs(s) * (np.abs(q) @ np.abs(k).swapaxes(1, 2))
    P, P_terms = QK * W, QK_terms * W_terms + product
    qC, qC_terms = s * (q @ C0), abs(s) * (np.abs(q) @ np.abs(C0))
    qn, qn_terms = s * (q @ n0[:, :, None])[..., 0], abs(s) * (np.abs(q) @ np.abs(n0)[:, :, None])[..., 0]
    N, N_terms = P @ v + U[..., None] * qC, P_terms @ np.abs(v) + U_terms[..., None] * qC_terms
    d, d_terms = P.sum(-1) + U * qn, P_terms.sum(-1) + U_terms * qn_terms

    r, rho, active, unsure = np.ones_like(d), np.ones_like(d), np.zeros_like(d), np.zeros_like(d, dtype=bool)
    if o.normalize:
        shrink, floor = np.exp(np.minimum(m, 0)), np.exp(-np.maximum(m, 0))
        size = np.abs(d) * shrink
        D = np.maximum(size, floor) + o.eps * shrink
        dead = D < o.tiny
        truth.undecided = bool(((o.tiny / 4 < D) & (o.tiny * 4 > D)).any())
        r = np.where(dead, 0, shrink / np.where(dead, 1, D))
        active = np.where(dead, 0, size > floor)
        spread = 4 * o.unit * d_terms * shrink
        unsure = ~dead & (np.abs(size - floor) <= spread + 4 * o.unit * floor)
        rounded_m = np.abs(m) * o.unit_m / o.unit  # where exp(m), of a rounded m, does not cancel
        rho = np.where(dead, 1, 1 + np.where((active > 0) | unsure, d_terms * r, rounded_m))
        truth.undecided |= bool((dead & (spread > o.tiny)).any())
        truth.conditioned = float(rho.max())
    h = r[..., None] * N
    h_terms = r[..., None] * N_terms + np.abs(h) * rho[..., None]

    # backward: *_terms are errors in units of `unit`
    along = (Gh * h).sum(-1)
    along_terms = (np.abs(Gh) * (h_terms + np.abs(h) * o.unit_h / o.unit)).sum(-1)
    dd = -np.sign(d) * active * along * r if o.exact and o.normalize else np.zeros_like(d)
    reached = ((active > 0) | unsure) if o.exact and o.normalize else np.zeros_like(unsure)
    dd_terms = np.where(reached, r * (along_terms + np.abs(along) * rho), 0)
    dd_terms = dd_terms + np.where(unsure & reached, np.abs(along) * r / o.unit, 0)  # on the kink of the maximum
    dN, dN_terms = r[..., None] * Gh, (r * (rho + 1))[..., None] * np.abs(Gh)
    dP = dN @ v.swapaxes(1, 2) + dd[..., None]
    dP_terms = dN_terms @ np.abs(v).swapaxes(1, 2) + dd_terms[..., None]
    dQK, dQK_terms = dP * W, dP_terms * W_terms + product
    flushed = o.least_product / o.unit
    dqC, dqC_terms = U[..., None] * dN, U_terms[..., None] * dN_terms + flushed * np.abs(Gh)
    dqn, dqn_terms = U * dd, U_terms * dd_terms + flushed * np.abs(along)
    a = abs(s)
    gauge = 1 + o.unit_m / o.unit * np.abs(m[:, -1, None])
    WT, WT_terms, UT, UT_terms = W[:, -1], gauge * W_terms[:, -1] + flushed, U[:, -1, None], gauge * U_terms[:, -1, None]
    kC, kC_terms = v @ GC.swapaxes(1, 2) + Gn[:, None], np.abs(v) @ np.abs(GC).swapaxes(1, 2) + np.abs(Gn)[:, None]

    value, terms = truth.value, truth.terms
    value["h"], terms["h"] = h, h_terms
    value["C"] = (k * WT[..., None]).swapaxes(1, 2) @ v + UT[..., None] * C0
    terms["C"] = (np.abs(k) * WT_terms[..., None]).swapaxes(1, 2) @ np.abs(v) + UT_terms[..., None] * np.abs(C0)
    terms["C"] = terms["C"] + flushed * np.abs(k).sum(1)[:, :, None]  # w v is kept in 16 bits, however small v is
    value["n"] = (k * WT[..., None]).sum(1) + UT * n0
    terms["n"] = (np.abs(k) * WT_terms[..., None]).sum(1) + UT_terms * np.abs(n0)
    value["m"], terms["m"] = m[:, -1], np.abs(m).max(1) + 1
    value["dq"] = s * (dQK @ k + dqC @ C0.swapaxes(1, 2) + dqn[..., None] * n0[:, None])
    terms["dq"] = a * (dQK_terms @ np.abs(k) + dqC_terms @ np.abs(C0).swapaxes(1, 2) + dqn_terms[..., None] * np.abs(n0)[:, None])
    value["dk"] = s * (dQK.swapaxes(1, 2) @ q) + WT[..., None] * kC
    terms["dk"] = a * (dQK_terms.swapaxes(1, 2) @ np.abs(q)) + WT_terms[..., None] * kC_terms
    value["dv"] = P.swapaxes(1, 2) @ dN + WT[..., None] * (k @ GC)
    terms["dv"] = P_terms.swapaxes(1, 2) @ dN_terms + product.T @ np.abs(Gh) + WT_terms[..., None] * (np.abs(k) @ np.abs(GC))
    value["dC0"] = s * (q.swapaxes(1, 2) @ dqC) + UT[..., None] * GC
    terms["dC0"] = a * (np.abs(q).swapaxes(1, 2) @ dqC_terms) + UT_terms[..., None] * np.abs(GC)
    terms["dC0"] = terms["dC0"] + flushed * np.abs(Gh).sum(1)[:, None]
    value["dn0"] = s * (q.swapaxes(1, 2) @ dqn[..., None])[..., 0] + UT * Gn
    terms["dn0"] = a * (np.abs(q).swapaxes(1, 2) @ dqn_terms[..., None])[..., 0] + UT_terms * np.abs(Gn)
    terms["dn0"] = terms["dn0"] + flushed * np.abs(along).sum(1)[:, None]

    dA = dP * P
    dA[:, -1] += WT * (k * kC).sum(-1)
    dstate = (dqC * qC).sum(-1) + dqn * qn
    dstate[:, -1] += UT[:, 0] * ((C0 * GC).sum((1, 2)) + (n0 * Gn).sum(1))
    value["dm0"] = dstate.sum(1)
    terms["dm0"] = (np.abs(C0) * terms["dC0"]).sum((1, 2)) + (np.abs(n0) * terms["dn0"]).sum(1)
    through_i, through_f = (sigmoid(-i) if o.sigmoid else np.ones_like(i)), sigmoid(-f)
    value["di"] = dA.sum(1) * through_i
    terms["di"] = (np.abs(k) * terms["dk"]).sum(-1) * through_i
    from_row_on = dA[:, ::-1].cumsum(1)[:, ::-1]  # (R, t, j): rows from t on
    before = np.tril(np.ones((S, S), bool), -1)
    value["df"] = (np.where(before, from_row_on, 0).sum(-1) + dstate[:, ::-1].cumsum(1)[:, ::-1]) * through_f
    # Implementations sum q.dq - k.dk over all that follows, from a border term <C, dC> + <n, dn>.
    border = (np.abs(value["C"] * GC)).sum((1, 2)) + np.abs(value["n"] * Gn).sum(1)
    each = (np.abs(q) * terms["dq"]).sum(-1) + (np.abs(k) * terms["dk"]).sum(-1)
    terms["df"] = (each[:, ::-1].cumsum(1)[:, ::-1] + border[:, None]) * through_f
    truth.largest = float(max(np.abs(x).max() for x in (P, U, U[..., None] * qC, value["C"])))
    truth.largest_backward = float(max(np.abs(x).max() for x in (dQK, dN, dqC, dqC * np.abs(q).max())))
    return truth
