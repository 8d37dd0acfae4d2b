"""States and their gradients, chunk by chunk: the only part that is sequential."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = tuple[Tensor, Tensor, Tensor]  # C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)


def state_shapes(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[tuple[int, ...], ...]:
    """Shapes of C, n, m for operands of a whole call."""
    N = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    NH, DHQK, DHHV = q.shape[-2], q.shape[-1], v.shape[-1]
    return (N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH)


def state_dtype(q: Tensor) -> torch.dtype:
    """What C, n, m are kept in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def fresh_state(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> State:
    """C, n, m before the first step where none is given."""
    C, n, m = (q.new_zeros(shape, dtype=state_dtype(q)) for shape in state_shapes(q, v, cu_seqlens))
    return C, n, m


def states_forward(C: Tensor, n: Tensor, K: Tensor, V: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """(M2) chunk by chunk: C, n at every border of a group, (G+1, R, DHQK, DHHV) and (G+1, R, DHQK).

    C, n: at the group's start. K (G, R, L, DHQK), V (G, R, L, DHHV), w (G, R, L), g (G, R).
    """
    update = bmm((K * w.unsqueeze(-1)).transpose(-1, -2), V)
    n_update = bmm(w.unsqueeze(-2), K).squeeze(-2)  # a matmul, because sum(-2) depends on the batch in its last bits
    Cs, ns = update.new_empty(len(g) + 1, *C.shape), n_update.new_empty(len(g) + 1, *n.shape)
    Cs[0], ns[0] = C, n
    _carry(update.unbind(0), Cs.unbind(0), g.unsqueeze(-1).unsqueeze(-1).unbind(0))
    _carry(n_update.unbind(0), ns.unbind(0), g.unsqueeze(-1).unbind(0))
    return Cs, ns


def states_reverse(
    dC: Tensor, dn: Tensor, Q: Tensor, rdH: Tensor, rdelta: Tensor | None, u: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """dC, dn at every border of a group, from those at its end; shapes as in `states_forward`.

    Q (G, R, L, DHQK); rdH (G, R, L, DHHV) and rdelta (G, R, L): r times dH and delta; u (G, R, L), g (G, R).
    """
    update = bmm((Q * u.unsqueeze(-1)).transpose(-1, -2), rdH)
    dCs, dns = update.new_empty(len(g) + 1, *dC.shape), Q.new_empty(len(g) + 1, *dn.shape)
    dCs[-1], dns[-1] = dC, dn
    n_update = Q.new_zeros(len(g), *dn.shape) if rdelta is None else bmm((u * rdelta).unsqueeze(-2), Q).squeeze(-2)
    _carry(update.unbind(0)[::-1], dCs.unbind(0)[::-1], g.unsqueeze(-1).unsqueeze(-1).unbind(0)[::-1])
    _carry(n_update.unbind(0)[::-1], dns.unbind(0)[::-1], g.unsqueeze(-1).unbind(0)[::-1])
    return dCs, dns


def _carry(updates: Sequence[Tensor], borders: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """borders[k + 1] = updates[k] + kept[k] borders[k]."""
    for update, before, after, g in zip(updates, borders, borders[1:], kept):
        torch.addcmul(update, before, g, out=after)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched matmul over the two leading axes (chunks and rows)."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:2], a.shape[2], b.shape[3])
