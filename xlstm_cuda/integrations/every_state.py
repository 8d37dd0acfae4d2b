"""c, n and m of the sLSTM after every step, for peers that return them: element by element, once h is known.

Only h mixes units. With h from `functional.slstm` all gates are one matmul, and between two steps (c, n, m) is multiplied by the
forget gate and added to: a loop over small tensors on a CPU, an associative scan of log2(S) rounds elsewhere. Peers return all
four states of every step in one tensor, of which hardly anyone reads more than h, so backward looks first whether there is
anything to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from ..states import SLSTMState


def every_state(x: Tensor, R: Tensor, b: Tensor, h: Tensor, state: SLSTMState | None) -> Tensor:
    """h, c, n, m after every step, (4, B, S, NH, DH), in the dtype of states; the forget gate is a sigmoid.

    Args:
        x: (B, S, 4, NH, DH), R: (4, NH, DH, DH) indexed [gate, head, out, in], b: (4, NH, DH), state: as in `functional.slstm`.
        h: (B, S, NH, DH), its result.

    Differentiable once, m included, as plain PyTorch is.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, R, b, h = (part.to(dtype) for part in (x, R, b, h))
    if state is None:
        state = SLSTMState(*x.new_zeros((4, len(x), *x.shape[3:])).unbind(0))
    return torch.stack([h, *_States.apply(x, R, b, h, *state)])


class _States(torch.autograd.Function):
    """c, n, m (B, S, NH, DH) from the operands and h; backward computes them again where a gradient comes in."""

    @staticmethod
    def forward(ctx: Any, *operands: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*operands)
        i, F, z, before = _gates(*operands)
        by_step = i.device.type == "cpu" and not torch.compiler.is_compiling() and bool(i.isfinite().all())
        return _loop(i, F, z, before) if by_step else _scan(i, F, z, before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        # On a GPU the question would wait for the device.
        asks = gradients[0].device.type == "cpu" and not torch.compiler.is_compiling()
        if asks and not any(bool(gradient.any()) for gradient in gradients):
            return (None,) * len(operands)
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in operands]
            states = _scan(*_gates(*leaves))
            return torch.autograd.grad(states, leaves, gradients)


def _gates(
    x: Tensor, R: Tensor, b: Tensor, h: Tensor, h0: Tensor, c0: Tensor, n0: Tensor, m0: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """i, log of the forget gate, z (B, S, NH, DH), and (m, c, n) before the first step, m = -inf where it is fresh."""
    previous = torch.cat([h0.unsqueeze(1), h], 1)[:, : h.shape[1]]
    i, f, z, _ = (x + torch.einsum("bshi,ghoi->bsgho", previous, R) + b).unbind(2)
    fresh = n0 == 0
    return i, logsigmoid(f), torch.tanh(z), (m0.masked_fill(fresh, -torch.inf), c0.masked_fill(fresh, 0.0), n0)


def _loop(i: Tensor, F: Tensor, z: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Step by step; finite i."""
    m, c, n = before
    states = torch.empty((3, i.shape[1], len(i), *i.shape[2:]), dtype=i.dtype, device=i.device)
    for t in range(i.shape[1]):
        kept = m + F[:, t]
        m = torch.maximum(kept, i[:, t], out=states[2, t])
        keep, add = torch.exp_(kept.sub_(m)), torch.exp_(i[:, t] - m)
        c = torch.addcmul(keep * c, add, z[:, t], out=states[0, t])
        n = torch.addcmul(add, keep, n, out=states[1, t])
    return tuple(part.transpose(0, 1) for part in states)


def _scan(i: Tensor, F: Tensor, z: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A piece of the sequence is (F, m, c, n): the log of its forget gates' product, and what it adds, stabilised by m."""
    start = (torch.zeros_like(before[0]), *before)
    piece = [torch.cat([first.unsqueeze(1), rest], 1) for first, rest in zip(start, (F, i, z, torch.ones_like(z)))]
    length = 1
    while length < piece[0].shape[1]:
        joined = _join([part[:, :-length] for part in piece], [part[:, length:] for part in piece])
        piece = [torch.cat([part[:, :length], rest], 1) for part, rest in zip(piece, joined)]
        length *= 2
    _, m, c, n = (part[:, 1:] for part in piece)
    return c, n, m


def _join(early: Sequence[Tensor], late: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The piece made of an early one and the one that follows."""
    F1, m1, c1, n1 = early
    F2, m2, c2, n2 = late
    kept = m1 + F2
    m = torch.maximum(kept, m2)
    finite = m.masked_fill(m == -torch.inf, 0.0)  # both closed: nothing is there, and nothing minus nothing is no number
    keep, add = torch.exp(kept - finite), torch.exp(m2 - finite)
    return F1 + F2, m, keep * c1 + add * c2, keep * n1 + add * n2
