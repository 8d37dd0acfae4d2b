"""c, n and m of the sLSTM after every step, for peers that return them: a scan over elements, once h is known.

Between two steps (c, n, m) is multiplied by the forget gate and added to, element by element; only h mixes units. So with h from
`functional.slstm` all gates are one matmul, and the states are an associative scan in log2(S) rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..states import SLSTMState


def every_state(x: Tensor, R: Tensor, b: Tensor, h: Tensor, state: SLSTMState | None) -> Tensor:
    """h, c, n, m after every step, (4, B, S, NH, DH), in the dtype of states; the forget gate is a sigmoid.

    Args:
        x: (B, S, 4, NH, DH), R: (4, NH, DH, DH) indexed [gate, head, out, in], b: (4, NH, DH), state: as of `functional.slstm`.
        h: (B, S, NH, DH), its result.

    Differentiable, m included, as plain PyTorch is.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, R, b, h = (part.to(dtype) for part in (x, R, b, h))
    first = torch.zeros_like(h[:, :1]) if state is None else state.h.unsqueeze(1)
    recurrent = torch.einsum("bshi,ghoi->bsgho", torch.cat([first, h[:, :-1]], 1)[:, : h.shape[1]], R)
    i, f, z, _ = (x + recurrent + b).unbind(2)
    # A piece of the sequence is (F, m, c, n): the log of its forget gates' product, and what it adds, stabilised by m.
    F, m, c, n = logsigmoid(f), i, torch.tanh(z), torch.ones_like(z)
    if state is not None:
        fresh = state.n == 0
        before = (torch.zeros_like(state.n), state.m.masked_fill(fresh, -torch.inf), state.c.masked_fill(fresh, 0.0), state.n)
        F, m, c, n = (torch.cat([start.unsqueeze(1), rest], 1) for start, rest in zip(before, (F, m, c, n)))
    length = 1
    while length < F.shape[1]:
        joined = _join([part[:, :-length] for part in (F, m, c, n)], [part[:, length:] for part in (F, m, c, n)])
        F, m, c, n = (torch.cat([part[:, :length], rest], 1) for part, rest in zip((F, m, c, n), joined))
        length *= 2
    S = h.shape[1]
    c, n, m = (part[:, part.shape[1] - S :] for part in (c, n, m))
    return torch.stack([h, c, n, m])


def _join(early: list[Tensor], late: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The piece made of an early one and the one that follows."""
    F1, m1, c1, n1 = early
    F2, m2, c2, n2 = late
    kept = m1 + F2
    m = torch.maximum(kept, m2)
    finite = m.masked_fill(m == -torch.inf, 0.0)  # both closed: nothing is there, and nothing minus nothing is no number
    keep, add = torch.exp(kept - finite), torch.exp(m2 - finite)
    return F1 + F2, m, keep * c1 + add * c2, keep * n1 + add * n2
