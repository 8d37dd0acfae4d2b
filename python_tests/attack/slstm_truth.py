"""The sLSTM in another form, in numpy, with a backward derived by hand; it shares no line with `xlstm_cuda.reference`.

Instead of c, n and a stabiliser it carries the ratio y = c / n and l = log n in true units. One step is a weighted mean:

    a = lf + l_   alpha = sigmoid(i~ - a)   y = (1 - alpha) y_ + alpha tanh(z~)   l = log(exp(a) + exp(i~))   h = sigmoid(o~) y

A fresh unit has l = -inf, y = 0, so alpha = 1 with the first finite i~. c, n of the returned state are y exp(l - m), exp(l - m)
with the m of S1. Backward, with dy and dl:

    dalpha = dy (z - y_)    di~ = dalpha alpha (1 - alpha) + dl alpha    da = -dalpha alpha (1 - alpha) + dl (1 - alpha) = dl_
    dz~ = dy alpha (1 - z^2)    do~ = dh y o (1 - o)    dy_ = dy (1 - alpha)    dh_ = R^T (di~, df~, dz~, do~)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mlstm_truth import Array, log_sigmoid, sigmoid


def slstm(
    x: Array, R: Array, b: Array, state: Any, reset: Array, G: Any, exponential_forget: bool
) -> tuple[dict[str, Array], dict[str, Array], float]:
    """x (B, S, 4, NH, DH), R (4, NH, DH, DH), b (4, NH, DH); state h, c, n, m; reset (B, S); G the gradients
    of h and of the last h, c, n.

    Returns results and gradients by name; their *terms*, the absolute values of what the last sum of each is made of; and the
    largest |gate| or |m| met, in units of which float32 rounds. An exponent d saved in 16 bits is off by about |d|/8 of a
    gradient's tolerance, so terms that hang on exp(d) count 1 + |d|/8 times.
    """
    h0, c0, n0, m0 = state
    Gh, Gh_last, Gc, Gn = G
    B, S = x.shape[:2]
    empty = n0 == 0
    one = np.where(empty, 1, n0)
    y, level = np.where(empty, 0, c0 / one), np.where(empty, -np.inf, m0 + np.log(one))
    h, m = h0, np.where(empty, 0, m0)
    h_terms = np.empty((B, S, *h0.shape[1:]), x.dtype)
    outputs, kept, widest = np.empty((B, S, *h0.shape[1:]), x.dtype), [], float(np.abs(m).max(initial=0))
    start = y, level
    for t in range(S):
        again = reset[:, t, None, None]
        h, y, level, m = np.where(again, 0, h), np.where(again, 0, y), np.where(again, -np.inf, level), np.where(again, 0, m)
        raw = x[:, t] + np.einsum("ghoi,bhi->bgho", R, h) + b
        i, f, z, o = raw[:, 0], raw[:, 1], np.tanh(raw[:, 2]), sigmoid(raw[:, 3])
        lf = f if exponential_forget else log_sigmoid(f)
        past = lf + level
        none = (past == -np.inf) & (i == -np.inf)
        s = np.where(none, 0, i - np.where(none, 0, past))
        alpha, keep = np.where(none, 0, sigmoid(s)), np.where(none, 0, sigmoid(-s))
        exponent = 1 + np.where((keep > 0) & np.isfinite(s), np.abs(s), 0) / 8
        kept.append((h, y, alpha, keep, z, o, f, again, exponent))
        m = np.where(past == -np.inf, i, np.maximum(i, lf + m))
        m = np.where(none, 0, m)
        y_terms = keep * np.abs(y) + alpha * np.abs(z)
        y, level = keep * y + alpha * z, np.logaddexp(past, i)
        h = o * y
        h_terms[:, t] = o * y_terms
        kept[-1] += (y,)
        outputs[:, t] = h
        widest = max(widest, *(float(np.abs(g[np.isfinite(g)]).max(initial=0)) for g in (raw, m)))
    n = np.exp(level - m) if S else n0
    c = y * n if S else c0
    value = {"h": outputs, "h_last": h, "c_last": c, "n_last": n, "m_last": m if S else m0}
    terms = {name: np.abs(array) for name, array in value.items()}

    if S == 0:
        weights = {"dx": x, "dR": np.zeros_like(R), "db": np.zeros_like(b)}
        value |= weights | {"dh0": Gh_last, "dc0": Gc, "dn0": Gn, "dm0": c0 * Gc + n0 * Gn}
        return value, {name: np.abs(array) for name, array in value.items()} | {"dm0": np.abs(c0 * Gc) + np.abs(n0 * Gn)}, widest
    terms |= {"h": h_terms, "h_last": h_terms[:, -1], "c_last": y_terms * n}
    dy, dl, dh = Gc * n, Gc * c + Gn * n, Gh_last
    dx, dR, dx_terms, dR_terms = np.zeros_like(x), np.zeros_like(R), np.zeros_like(x), np.zeros_like(R)
    for t in reversed(range(S)):
        h, y_, alpha, keep, z, o, f, again, exponent, y = kept[t]
        dh = dh + Gh[:, t]
        dy_terms = np.where(again, 0, (np.abs(dy) + np.abs(dh * o)) * keep * exponent)
        dy = dy + dh * o
        pull = dy * (z - y_) * alpha * keep
        da = -pull + dl * keep
        through_f = 1 if exponential_forget else sigmoid(-f)
        dg = np.stack([pull + dl * alpha, da * through_f, dy * alpha * (1 - z * z), dh * y * o * (1 - o)], 1)
        dx[:, t] = dg
        to_i = np.abs(pull) + np.abs(dl * alpha)
        da_terms = np.where(again, 0, (np.abs(pull) + np.abs(dl * keep)) * exponent)
        dg_terms = np.stack([to_i, da_terms * through_f, np.abs(dg[:, 2]), np.abs(dg[:, 3])], 1)
        dx_terms[:, t] = dg_terms
        dR_terms += np.einsum("bgho,bhi->ghoi", dg_terms, np.abs(h))
        dh_terms = np.where(again, 0, np.einsum("ghoi,bgho->bhi", np.abs(R), dg_terms))
        dR += np.einsum("bgho,bhi->ghoi", dg, h)
        dh = np.where(again, 0, np.einsum("ghoi,bgho->bhi", R, dg))
        dy, dl = np.where(again, 0, dy * keep), np.where(again, 0, da)
    y0, _ = start
    value |= {"dx": dx, "dR": dR, "db": dx.sum((0, 1)), "dh0": dh}
    value |= {"dc0": np.where(empty, 0, dy / one), "dn0": np.where(empty, 0, (dl - dy * y0) / one), "dm0": np.where(empty, 0, dl)}
    terms |= {
        "dx": dx_terms,
        "dR": dR_terms,
        "db": dx_terms.sum((0, 1)),
        "dh0": dh_terms,
        "dc0": np.where(empty, 0, dy_terms / np.abs(one)),
    }
    terms["dn0"] = np.where(empty, 0, (da_terms + dy_terms * np.abs(y0)) / np.abs(one))
    terms["dm0"] = np.abs(c0) * terms["dc0"] + np.abs(n0) * terms["dn0"]
    return value, terms, widest
