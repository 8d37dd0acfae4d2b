"""Context parallelism of the mLSTM: every rank of a process group holds a contiguous piece of S (docs/distributed.md, X1-X8).

A piece is summarised by what its own steps leave, (C, n, m), and by its decay G, the sum of its log forget gates. One all-gather
of these summaries gives every rank the state before its piece, from which it goes on as in one process; backward, one all-gather
of the gradients of these states gives every rank the gradient of its summary. Nothing here knows a backend: the summary is a
weighted sum of k v^T, by PyTorch's matmul.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.functional import logsigmoid

from .. import checks
from ..states import state_dtype

BLOCK = 2048  #: steps whose float32 copies of k and v are in memory at once

State = tuple[Tensor, Tensor, Tensor]  # C (N, NH, DHQK, DHHV), n (N, NH, DHQK), m (N, NH)


class Piece(NamedTuple):
    """This rank's steps, ``start`` to ``end`` of the whole sequence. Modules hand it down in the group's place."""

    group: Any
    rank: int
    size: int
    start: int
    end: int
    borders: Tensor | None  #: cu_seqlens of the whole, (N+1)

    def begins(self) -> Tensor:
        """bool (N): the sequences whose first step is not on an earlier rank."""
        assert self.borders is not None
        return self.borders[:-1] >= self.start

    def crosses(self) -> Tensor:
        """bool (N): the sequence, if any, that began on an earlier rank and goes on here."""
        assert self.borders is not None
        return ~self.begins() & (self.borders[1:] > self.start)

    def open_row(self) -> Tensor:
        """int64 (1): the sequence that the last step of this piece belongs to."""
        assert self.borders is not None
        return ((self.borders < self.end).sum() - 1).clamp(min=0).unsqueeze(0)

    def last_start(self, rows: int, device: torch.device) -> Tensor:
        """int64 (rows): the step of this piece at which the sequence open at its end began, or -1 if it began earlier."""
        if self.borders is None:
            return torch.full((rows,), 0 if self.rank == 0 else -1, dtype=torch.int64, device=device)
        here = (self.borders >= self.start) & (self.borders < self.end)
        return (self.borders.long() - self.start).masked_fill(~here, -1).amax(0, keepdim=True)


def enter(
    cp_group: Any,
    x: Tensor,
    cu_seqlens: Tensor | None,
    shape: dict[str, int],
    state: object = None,
    gradients: bool | None = None,
) -> tuple[Piece | None, Tensor | None]:
    """Finds this rank's place among the pieces, by one all-gather of a few numbers in which the ranks compare their arguments.

    Args:
        cp_group: a process group, what `enter` has made of it (then nothing happens), or None.
        x: the operand (B, S, ...). cu_seqlens: borders on the whole sequence, or None.
        shape: what must be equal on every rank, by name.
        state: the state before the first step; gradients: whether the exchange will have a backward, by default the grad mode.

    Returns:
        The piece, None for a plain call; and the borders of the N sequences inside this piece.

    Raises, on every rank:
        ValueError: the ranks' arguments do not fit together; this process is no member of the group.
    """
    if cp_group is None or isinstance(cp_group, Piece):
        return cp_group, cu_seqlens
    if gradients is None:
        gradients = torch.is_grad_enabled()
    place: tuple[Piece | None, Tensor | None] = _agreed(cp_group, x, cu_seqlens, shape, state is not None, gradients)
    return place


@torch.compiler.disable
def _agreed(
    cp_group: Any, x: Tensor, cu_seqlens: Tensor | None, shape: dict[str, int], state: bool, gradients: bool
) -> tuple[Piece | None, Tensor | None]:
    """`enter` with a group."""
    size, rank = _membership(cp_group)
    if size == 1:
        return None, cu_seqlens
    if cu_seqlens is not None:
        checks.rank("cu_seqlens", checks.tensor("cu_seqlens", cu_seqlens), "(N+1)")
    mine = {
        **shape,
        "dtype": checks.FLOATING.index(x.dtype) if x.dtype in checks.FLOATING else -1,
        "borders in cu_seqlens": 0 if cu_seqlens is None else len(cu_seqlens),
        "cu_seqlens": _checksum(cu_seqlens),
        "gradients": int(gradients),
    }
    numbers = torch.tensor([x.shape[1], int(state), *mine.values()], dtype=torch.int64, device=x.device)
    table = [row.tolist() for row in _gathered(numbers, cp_group, size).unbind(0)]
    for column, name in enumerate(mine, 2):
        for other in range(1, size):
            if table[other][column] != table[0][column]:
                one, two = (_shown(name, table[rank][column]) for rank in (0, other))
                raise ValueError(
                    f"cp_group: got {name} {one} on rank 0 and {two} on rank {other}, expected the same on every rank"
                )
    if cu_seqlens is None:
        for other in range(1, size):
            if table[other][1]:
                raise ValueError(f"state: got one on rank {other} of cp_group, expected None: the sequence begins on rank 0")
    lengths = [row[0] for row in table]
    start = sum(lengths[:rank])
    end = start + lengths[rank]
    if cu_seqlens is None:
        return Piece(cp_group, rank, size, start, end, None), None
    if len(cu_seqlens) == 1:  # no sequence
        return None, cu_seqlens
    checks.cu_seqlens(cu_seqlens, x.shape[0], sum(lengths), x.device)
    return Piece(cp_group, rank, size, start, end, cu_seqlens), (cu_seqlens.clamp(start, end) - start).int()


def _membership(cp_group: Any) -> tuple[int, int]:
    """Size of the group, and this process's rank in it."""
    if not distributed.is_available():
        raise RuntimeError("cp_group: this torch was built without torch.distributed")
    if cp_group is distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("cp_group: this process is not a member of the group, expected a call by its members alone")
    if not isinstance(cp_group, distributed.ProcessGroup):
        raise TypeError(f"cp_group: got {type(cp_group).__name__}, expected a torch.distributed.ProcessGroup")
    return distributed.get_world_size(cp_group), distributed.get_rank(cp_group)


_WORDS = {
    "dtype": (*(str(dtype).removeprefix("torch.") for dtype in checks.FLOATING), "integers"),
    "gradients": ("off", "on"),
    "igate": ("sigmoid", "exp"),
}


def _shown(name: str, value: int) -> str:
    """A number of `enter` in words."""
    if name == "cu_seqlens":
        return f"{value:#x} (a checksum)"
    return _WORDS[name][value] if name in _WORDS else str(value)


def _checksum(cu_seqlens: Tensor | None) -> int:
    """Of borders that can be read without waiting for a device, else 0."""
    if cu_seqlens is None or cu_seqlens.device.type != "cpu":
        return 0
    return zlib.crc32(str(cu_seqlens.tolist()).encode())


def _gathered(x: Tensor, group: Any, size: int) -> Tensor:
    """x of every rank, (size, *x.shape)."""
    everyone = x.new_empty((size, *x.shape))
    if x.numel():
        distributed.all_gather(list(everyone.unbind(0)), x.contiguous(), group=group)
    return everyone


@torch.compiler.disable
def incoming(
    k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State | None, piece: Piece, reset: Tensor | None, igate: str
) -> State:
    """The state before this rank's piece, of every row; operands as of `functional.mlstm`, ``state`` before the first step.

    It depends on k, v, i, f of the earlier ranks, and autograd knows it.
    """
    with torch._C._DisableAutocast():
        last = last_start = piece.last_start(k.shape[0], k.device)
        steps = torch.arange(k.shape[1], device=k.device)
        kept = last >= 0  # rows whose given state counts: begun in this piece, and not reset since
        if reset is not None and reset.shape[1]:
            last_reset = torch.where(reset, steps, -1).amax(1)
            kept = kept & (last_reset < 0)
            last = torch.maximum(last_start, last_reset)
        own = None if piece.borders is None and reset is None else steps >= last.unsqueeze(1)
        C, n, m, G = _Summary.apply(k, v, i, f, own, igate)  # type: ignore[no-untyped-call]
        opened = None if state is None else _open_state(state, piece, kept)
        C, n, m, G = _begun(C, n, m, G, opened, (last >= 0).unsqueeze(1), igate)
        C, n, m = _Exchange.apply(C, n, m, G, piece, igate)  # type: ignore[no-untyped-call]
        return _rows(C, n, m, state, piece)


def _refuse_forward_mode(ctx: Any, *tangents: Any) -> Any:
    raise RuntimeError("xlstm_cuda: mlstm with cp_group: forward mode AD is not supported")


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("xlstm_cuda: mlstm with cp_group: double backward is not supported, expected create_graph=False")


class _Summary(torch.autograd.Function):
    """(C, n, m) that the steps of a piece leave behind, and its decay G, the sum of log f: (X1).

    k (B, S, NH, DHQK), v (B, S, NH, DHHV), i, f (B, S, NH), own (B, S) the steps that count, or None for all ->
    C, n, m in the dtype of states, G (B, NH) float64; m = -inf where no step writes. Backward makes the weights anew.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, i: Tensor, f: Tensor, own: Tensor | None, igate: str) -> Any:
        m, G, weights = _weights(i, f, own, igate, state_dtype(k))
        (B, S, NH, DHQK), DHHV = k.shape, v.shape[-1]
        C = m.new_zeros(B, NH, DHQK, DHHV)
        n = m.new_zeros(B, NH, DHQK)
        for part in _blocks(S):
            K, V, w = (_by_head(x, part, own, m.dtype) for x in (k, v, weights.unsqueeze(-1)))
            K = K * w
            C += K.transpose(-1, -2) @ V
            n += K.sum(-2)
        ctx.save_for_backward(k, v, i, f, own)
        ctx.igate = igate
        ctx.mark_non_differentiable(m)
        return C, n, m, G

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _refuse_double_backward()
        (dC, dn, _, dG), (k, v, i, f, own), igate = gradients, ctx.saved_tensors, ctx.igate
        with torch._C._DisableAutocast():
            m, _, weights = _weights(i, f, own, igate, state_dtype(k))
            dk, dv, da = torch.empty_like(k), torch.empty_like(v), weights.new_empty(weights.shape)
            for part in _blocks(k.shape[1]):
                K, V, w = (_by_head(x, part, own, m.dtype) for x in (k, v, weights.unsqueeze(-1)))
                dK = w * (V @ dC.transpose(-1, -2) + dn.unsqueeze(-2))
                dV = w * (K @ dC)
                da[:, part] = _own((K * dK).sum(-1).transpose(1, 2), own, part)
                dk[:, part] = _own(dK.transpose(1, 2), own, part)
                dv[:, part] = _own(dV.transpose(1, 2), own, part)
            da = da.double()
            # log f_t decays every step before it, and the whole piece.
            before = torch.nn.functional.pad(da, (0, 0, 1, 0))[:, :-1].cumsum(1)
            dlog_f = _own(before + dG.unsqueeze(1), own, slice(None))
            di = da if igate == "exp" else da * torch.sigmoid(-i.double())
            return dk, dv, di.to(i.dtype), (dlog_f * torch.sigmoid(-f.double())).to(f.dtype), None, None

    jvp = staticmethod(_refuse_forward_mode)


def _weights(i: Tensor, f: Tensor, own: Tensor | None, igate: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """m (B, NH), G (B, NH) float64, and exp(a_j - m) (B, S, NH); sums in float64, because some gates are -1e4."""
    log_f = logsigmoid(f.double())
    log_i = i.double() if igate == "exp" else logsigmoid(i.double())
    if own is not None:
        log_f = _own(log_f, own, slice(None))
        log_i = log_i.masked_fill(~own.unsqueeze(-1), -torch.inf)
    # Sums from each step to the end, never differences of sums: a forget gate of -inf stays what it is.
    to_end = torch.nn.functional.pad(log_f, (0, 0, 0, 1)).flip(1).cumsum(1).flip(1)
    G, after = to_end[:, 0], to_end[:, 1:]
    a = log_i + after
    if igate == "sigmoid":
        return torch.zeros_like(G, dtype=dtype), G, torch.exp(a).to(dtype)
    closed = (log_f == -torch.inf) & (log_i == -torch.inf)  # both gates: m is 0 after such a step
    largest = torch.where(closed, after, a)
    m = torch.nn.functional.pad(largest, (0, 0, 0, 1), value=-torch.inf).amax(1).to(dtype)
    return m, G, torch.exp(a - _finite(m).double().unsqueeze(1)).to(dtype)


def _blocks(S: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, S, BLOCK)]


def _by_head(x: Tensor, part: slice, own: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, S, NH, D) -> some steps as (B, NH, steps, D) in the dtype of states; zeros where a step does not count."""
    return _own(x[:, part].to(dtype), own, part).transpose(1, 2)


def _own(x: Tensor, own: Tensor | None, part: slice) -> Tensor:
    """Some steps (B, steps, ...), zeros where one does not count: products with 0 would keep a NaN."""
    return x if own is None else x.masked_fill(~own[:, part].view(*x.shape[:2], *[1] * (x.dim() - 2)), 0)


def _finite(m: Tensor) -> Tensor:
    """m, or 0 where there is nothing (m = -inf), so that differences of two such are no NaN."""
    return m.masked_fill(m == -torch.inf, 0)


def _open_state(state: State, piece: Piece, kept: Tensor) -> State:
    """The given state of the sequence that is open at the end of this piece, zeros where it does not count."""
    if piece.borders is not None:
        row = piece.open_row()
        state = state[0].index_select(0, row), state[1].index_select(0, row), state[2].index_select(0, row)
    C, n, m = (part.masked_fill(~_like(kept, part), 0) for part in state)
    return C, n, m


def _begun(
    C: Tensor, n: Tensor, m: Tensor, G: Tensor, state: State | None, begins: Tensor, igate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A summary in which the rows that begin in this piece have the state before their first step: (X2). begins (B, 1).

    A fresh state has m = 0, which counts in m; nothing from before such a piece goes on after it, G = -inf.
    """
    m_start = m.new_zeros(m.shape, dtype=torch.float64) if state is None else state[2].double()
    reached = (G + m_start).masked_fill(~begins, -torch.inf)
    after = torch.zeros_like(m) if igate == "sigmoid" else torch.maximum(reached, m.double()).to(m.dtype).detach()
    units = _finite(after).double()
    gain = torch.exp(m.double() - units).to(m.dtype)
    C, n = gain[..., None, None] * C, gain[..., None] * n
    if state is not None:
        keep = torch.exp(reached - units).to(m.dtype)
        C, n = C + keep[..., None, None] * state[0], n + keep[..., None] * state[1]
    return C, n, after, G.masked_fill(begins, -torch.inf)


def _rows(C: Tensor, n: Tensor, m: Tensor, state: State | None, piece: Piece) -> State:
    """The state before the piece, of every row: what `_Exchange` found, or for a sequence that begins here the given state.

    The exchanged state is part of the result on every rank, zeros on the first: its backward is a collective, so none may be
    missing.
    """
    found = (C, n, m)
    if piece.borders is None:
        return found if state is None else tuple(x + given for x, given in zip(found, state))  # type: ignore[return-value]
    goes_on, begins = piece.crosses(), piece.begins()
    rows = []
    for index, part in enumerate(found):
        before = part.new_zeros(()) if state is None else torch.where(_like(begins, state[index]), state[index], 0)
        rows.append(torch.where(_like(goes_on, part), part, before))
    return tuple(rows)  # type: ignore[return-value]


def _like(rows: Tensor, part: Tensor) -> Tensor:
    """(N) -> (N, 1, ...), with as many axes as ``part``."""
    return rows.view(-1, *[1] * (part.dim() - 1))


class _Exchange(torch.autograd.Function):
    """Summaries of all ranks -> the state before this rank's piece, zeros on rank 0: (X3)-(X5), one all-gather each way.

    What is kept for backward does not grow with the number of ranks: this state, and m and G of every rank, (R, B, NH).
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor, n: Tensor, m: Tensor, G: Tensor, piece: Piece, igate: str) -> Any:
        # G travels as two numbers, in float32 too: it is a long sum, of which differences are taken.
        high = G.to(m.dtype)
        low = torch.where(G == -torch.inf, 0, G - high.double()).to(m.dtype)
        message = torch.cat([C.flatten(2), n, torch.stack([m, high, low], -1)], -1)
        everyone = _gathered(message, piece.group, piece.size)
        matrices, vectors, scalars = everyone.split([C.shape[-2] * C.shape[-1], n.shape[-1], 3], -1)
        ms, Gs = scalars[..., 0].double(), scalars[..., 1].double() + scalars[..., 2].double()
        before = _stabilisers(ms, Gs, igate, m.dtype)
        P, p = torch.zeros_like(C), torch.zeros_like(n)
        for source, decay in _decays(Gs, before, range(piece.rank), piece.rank):
            weight = torch.exp(decay + ms[source]).to(m.dtype)
            P += _scaled(matrices[source].view_as(C), weight)
            p += _scaled(vectors[source], weight)
        ctx.save_for_backward(P, p, ms, Gs)
        ctx.piece, ctx.igate = piece, igate
        last = before[piece.rank].to(m.dtype)
        ctx.mark_non_differentiable(last)
        return P, p, last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _refuse_double_backward()
        (dC, dn, _), (P, p, ms, Gs), piece = gradients, ctx.saved_tensors, ctx.piece
        everyone = _gathered(torch.cat([dC.flatten(2), dn], -1), piece.group, piece.size)
        before = _stabilisers(ms, Gs, ctx.igate, dC.dtype)
        mine = piece.rank
        into, vector, decayed = torch.zeros_like(dC), torch.zeros_like(dn), torch.zeros_like(Gs[0])
        for target in range(mine + 1, piece.size):
            ((_, decay),) = _decays(Gs, before, [mine], target)
            matrices, vectors = everyone[target].split([everyone.shape[-1] - dn.shape[-1], dn.shape[-1]], -1)
            weight = torch.exp(decay + ms[mine]).to(dC.dtype)
            into += _scaled(matrices.view_as(dC), weight)
            vector += _scaled(vectors, weight)
            through = torch.exp(decay + Gs[mine] + before[mine])
            dots = (P * matrices.view_as(P)).sum((-1, -2)) + (p * vectors).sum(-1)
            decayed += _scaled(dots.double(), through)
        return into, vector, None, decayed, None, None

    jvp = staticmethod(_refuse_forward_mode)


def _stabilisers(ms: Tensor, Gs: Tensor, igate: str, dtype: torch.dtype) -> Tensor:
    """m before every piece, (R, B, NH) float64 of values that ``dtype`` holds; 0 before the first: (X3)."""
    before = [torch.zeros_like(ms[0])]
    reached = torch.full_like(ms[0], -torch.inf)
    for m, G in zip(ms[:-1], Gs[:-1]):
        reached = torch.maximum(G + reached, m).to(dtype).double()
        before.append(torch.zeros_like(reached) if igate == "sigmoid" else _finite(reached))
    return torch.stack(before)


def _decays(Gs: Tensor, before: Tensor, sources: Any, target: int) -> list[tuple[int, Tensor]]:
    """For every source its number and the log of the decay from its end to the target's beginning, less the target's m: (X4)."""
    return [(source, Gs[source + 1 : target].sum(0) - before[target]) for source in sources]


def _scaled(x: Tensor, weight: Tensor) -> Tensor:
    """weight (B, NH) times x (B, NH, ...); 0 where the weight is, whatever x is: a NaN of another sequence ends there."""
    weight = weight.view(*weight.shape, *[1] * (x.dim() - weight.dim()))
    return torch.where(weight == 0, 0, weight * x)


@torch.compiler.disable
def inputs_before(window: Tensor, piece: Piece, state: Tensor | None, reset: Tensor | None) -> Tensor:
    """The last K inputs before this rank's piece, of every row (N, K, D), by one all-gather: (X8).

    Args:
        window: (N, K, D), the last K inputs of this piece of every row, `begun` inputs included, zeros before them.
        state: as `begun` returns it.
        reset: bool (B, S) of this piece, or None.
    """
    K, device = window.shape[1], window.device
    if piece.borders is not None:
        window = window.index_select(0, piece.open_row())
    whole = piece.last_start(window.shape[0], device) >= 0
    if reset is not None:
        whole = whole | reset.any(1)
    places = torch.arange(K, device=device)
    own = whole.unsqueeze(1) | (places >= K - (piece.end - piece.start))
    earlier: Tensor = _FromEarlier.apply(torch.cat([window, own.unsqueeze(-1)], -1), piece)  # type: ignore[no-untyped-call]
    found = earlier[-1, ..., :-1]  # zeros, and on rank 0, too, a result of the collective
    for message in earlier[: piece.rank].unbind(0):
        inputs, own = message[..., :-1], message[..., -1:].bool()
        moved = (places + own.sum(1)).clamp(max=K - 1).unsqueeze(-1).expand_as(found)
        found = torch.where(own, inputs, found.gather(1, moved))
    if piece.borders is None:
        return found if state is None else found + state
    before = found.new_zeros(()) if state is None else state
    return torch.where(_like(piece.crosses(), found), found, before)


def begun(state: Tensor | None, piece: Piece) -> Tensor | None:
    """The given inputs (N, K, D) before sequences that begin in this piece, zeros of others."""
    if state is None or piece.borders is None:
        return state
    return torch.where(_like(piece.begins(), state), state, 0)


class _FromEarlier(torch.autograd.Function):
    """x of every earlier rank, zeros for the others, (R, *x.shape); backward, the sum over ranks of the gradients of this x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, piece: Piece) -> Tensor:
        ctx.piece = piece
        everyone = _gathered(x, piece.group, piece.size)
        everyone[piece.rank :] = 0
        return everyone

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        _refuse_double_backward()
        piece, total = ctx.piece, gradients[0].clone(memory_format=torch.contiguous_format)
        total[piece.rank :] = 0
        if total.numel():
            distributed.all_reduce(total, group=piece.group)
        return total[piece.rank], None

    jvp = staticmethod(_refuse_forward_mode)
