"""The two recurrences as functions: ``mlstm`` and ``slstm`` over sequences, ``mlstm_step`` and ``slstm_step`` over one token.

B is the batch, S the steps, NH the heads. DHQK is the head dim of queries and keys, DHHV that of values and of h; the sLSTM has
one head dim, DH. Tensors may have any strides. Gates are pre-activations. States are float32 (float64 for float64 inputs) and are
never changed in place.

What gradients mean: m is a gauge, computed without gradient, and the returned m does not require one. Gradients of the returned
C and n (c and n) are taken at that m. The incoming m0 receives ``<C0, dC0> + <n0, dn0>``. So every loss on h has the gradient of
the definition, and so has every loss on the state that does not depend on the gauge, such as feeding it to the next call. One
limit: for eps > 0 the gradients of the mLSTM's f and m0 leave out how eps scales with the gauge, an error of the size of eps.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from . import checks, reference
from .backends import resolve
from .ops import context, flops  # noqa: F401  flops registers its formulas
from .ops import mlstm as mlstm_ops
from .ops import slstm as slstm_ops
from .ops.library import differentiated
from .ops.signatures import MLSTMOperands, MLSTMOptions, MLSTMToken, SLSTMOperands, SLSTMOptions
from .states import MLSTMState, SLSTMState, state_dtype

CHUNK_SIZES = (16, 32, 64, 128, 256)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    state: MLSTMState | Sequence[Tensor] | None = None,
    return_state: bool = False,
    scale: float | None = None,
    igate: str = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
    normalizer_grad: str = "exact",
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cp_group: Any = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """The matrix LSTM over a sequence (arXiv 2405.04517, equations 19-27; M1-M3 in csrc/mlstm/README.md).

    Args:
        q, k: (B, S, NH, DHQK), float32, bfloat16, float16 or float64.
        v: (B, S, NH, DHHV), the dtype of q.
        i, f: (B, S, NH) input and forget gate, the dtype of q or float32.
        state: MLSTMState(C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)) before the first step; None is the fresh state.
        return_state: also return the state after the last step.
        scale: factor of q; the default is DHQK to the power of -0.5.
        igate: "exp", or "sigmoid" (then m = 0).
        normalize: False leaves the division in M3 out (only with igate="sigmoid").
        eps: added to the normaliser, in the units of the stabilised state.
        normalizer_grad: "exact" differentiates the normaliser too; "detached" takes it for a constant, as official kernels do.
        reset: bool (B, S); True starts that sample afresh before that step: h, the state, its m and the gradients are those of
            a separate call from there on, and f gets no gradient at that step. On backends other than "reference" a NaN from
            before the reset may pass it.
        cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, the state has N rows.
        cp_group: a torch.distributed.ProcessGroup. Each rank calls with a contiguous piece of S, in the order of the ranks in the
            group; lengths may differ and be 0. Results are those of one call with the whole. cu_seqlens are then the borders on
            the whole S, the same on every rank. A rank reads the rows of `state` whose sequence has its first step there (without
            cu_seqlens: rank 0, the others give None) and returns the state after its own last step, so that the last rank has
            that of the whole. Every rank calls backward (docs/distributed.md).
        chunk_size: steps per chunk of backend "cpu", one of 16, 32, 64, 128, 256; None is, for every sequence, the one from 32 on
            that costs least: 64 for a long one (32 up to head dim 32, 128 from 192 on), the whole of one of up to 256 steps that
            is at most twice as long as its heads are wide. A sequence that is split at a multiple of a given size has the same
            bits as the whole.
            The CUDA kernels have their own size, 64 or 32 by head dim; there a split at a multiple of 64 has the same bits.
        backend: None (by device), "cuda", "cpu", "simt" or "reference".

    Returns:
        h (B, S, NH, DHHV) in v's dtype; with return_state also the final MLSTMState.

    Raises:
        TypeError: not a tensor, or a dtype that is not accepted.
        ValueError: a shape, device, state or option that does not fit.
        RuntimeError: the backend is not usable here; double backward or forward-mode AD through a kernel.

    Examples:
        >>> q, k, v = torch.randn(3, 2, 50, 4, 32)  # each: B 2, S 50, NH 4, DHQK = DHHV = 32
        >>> i, f = torch.randn(2, 2, 50, 4)
        >>> h, state = mlstm(q, k, v, i, f, return_state=True)
        >>> h.shape
        torch.Size([2, 50, 4, 32])
        >>> state
        MLSTMState(C=float32 (2, 4, 32, 32), n=float32 (2, 4, 32), m=float32 (2, 4))
        >>> more = mlstm(q, k, v, i, f, state=state)  # goes on where the first call stopped
    """
    q, k, v, i, f = _autocast(("q", q), ("k", k), ("v", v), ("i", i), ("f", f))
    B, S, NH, DHQK, DHHV = _check_mlstm(q, k, v, i, f, "B, S, ")
    checks.choice("normalizer_grad", normalizer_grad, ("exact", "detached"))
    if chunk_size is not None and chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size: got {chunk_size!r}, expected None or one of {', '.join(map(str, CHUNK_SIZES))}")
    if reset is not None:
        checks.reset(reset, B, S, q.device)
    piece = None
    if cp_group is not None:
        alike = {"B": B, "NH": NH, "DHQK": DHQK, "DHHV": DHHV, "igate": int(igate == "exp")}
        held = state if isinstance(state, (tuple, list)) else ()
        exchanged = differentiated(k, v, i, f, *(x for x in held if isinstance(x, Tensor)))
        piece, cu_seqlens = context.enter(cp_group, q, cu_seqlens, alike, state, exchanged)
    N = B if cu_seqlens is None else checks.cu_seqlens(cu_seqlens, B, S, q.device)
    initial = None if state is None else _mlstm_state(state, N, NH, DHQK, DHHV, q)
    numeric = _mlstm_numeric(scale, igate, normalize, eps, DHQK)
    options = MLSTMOptions(
        *numeric, chunk_size=chunk_size, exact=normalizer_grad == "exact", return_state=return_state,
        backend=resolve(backend, q.device),
    )  # fmt: skip

    if piece is not None:
        initial = context.incoming(k, v, i, f, initial, piece, reset, igate)
    if options.backend == "reference":
        inputs = [x.to(state_dtype(q)) for x in (q, k, v, i, f)] + ([] if reset is None else [reset])
        start = initial or tuple(q.new_zeros(shape, dtype=state_dtype(q)) for shape in _mlstm_shapes(N, NH, DHQK, DHHV))

        def run_mlstm(xs: Sequence[Tensor], state: Any) -> tuple[Tensor, Sequence[Tensor]]:
            q, k, v, i, f, *starts = xs
            afresh = starts[0] if starts else None
            return reference.mlstm(
                q, k, v, i, f, state, reset=afresh, normalizer_grad=normalizer_grad, **_by_name(options)
            )  # fmt: skip

        with _without_autocast(q.device.type):
            h, last = _each_sequence(run_mlstm, inputs, start, cu_seqlens)
        h = h.to(v.dtype)
    else:
        C0, n0, m0 = initial or (None, None, None)
        if reset is not None:
            k, i, f = _started_afresh(k, i, f, reset, igate)
        h, last = mlstm_ops.mlstm(MLSTMOperands(q, k, v, i, f, C0, n0, m0, cu_seqlens), options)
    return (h, MLSTMState(last[0], last[1], last[2].detach())) if return_state else h


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState | Sequence[Tensor],
    *,
    scale: float | None = None,
    igate: str = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """One token of the matrix LSTM; arguments as in `mlstm` without the S axis. Memory and time do not depend on the past.

    Args:
        q, k: (B, NH, DHQK). v: (B, NH, DHHV). i, f: (B, NH).
        state: MLSTMState(C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH)); it is left as it is.

    Returns:
        h (B, NH, DHHV) in v's dtype, and the new MLSTMState. Differentiable like `mlstm`.

    Examples:
        >>> q, k, v = torch.randn(3, 2, 4, 32)  # each: B 2, NH 4, DHQK = DHHV = 32
        >>> i, f = torch.randn(2, 2, 4)
        >>> fresh = MLSTMState(torch.zeros(2, 4, 32, 32), torch.zeros(2, 4, 32), torch.zeros(2, 4))
        >>> h, state = mlstm_step(q, k, v, i, f, fresh)
        >>> h.shape
        torch.Size([2, 4, 32])
    """
    q, k, v, i, f = _autocast(("q", q), ("k", k), ("v", v), ("i", i), ("f", f))
    B, _, NH, DHQK, DHHV = _check_mlstm(q, k, v, i, f, "B, ")
    numeric = _mlstm_numeric(scale, igate, normalize, eps, DHQK)
    options = MLSTMOptions(*numeric, backend=resolve(backend, q.device))
    initial = _mlstm_state(state, B, NH, DHQK, DHHV, q)
    if options.backend != "reference" and not differentiated(q, k, v, i, f, *initial):
        h, last = mlstm_ops.mlstm_step(MLSTMToken(q, k, v, i, f, *initial), options)
        return h, MLSTMState(*last)
    sequence = [x.unsqueeze(1) for x in (q, k, v, i, f)]
    h, last_state = mlstm(*sequence, state=initial, return_state=True, backend=options.backend, **_by_name(options))
    return h.squeeze(1), last_state


def slstm(
    x: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    *,
    state: SLSTMState | Sequence[Tensor] | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    forget_gate: str = "sigmoid",
    checkpoint_every: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, SLSTMState]:
    """The scalar LSTM with memory mixing over a sequence (arXiv 2405.04517, equations 8-18; S1-S3 in csrc/slstm/README.md).

    Args:
        x: (B, S, 4, NH, DH), what the input adds to the gates i, f, z, o (in this order); float32, bfloat16, float16, float64.
        R: (4, NH, DH, DH), recurrent weights indexed [gate, head, out, in]; the dtype of x or float32.
        b: (4, NH, DH), bias of the gates, or None; the dtype of x or float32.
        state: SLSTMState(h, c, n, m), each (B, NH, DH), before the first step; None is the fresh state.
        return_state: also return the state after the last step.
        reset: bool (B, S); True starts that sample afresh before that step.
        cu_seqlens: int32 (N+1,), borders of N sequences that lie one after the other on S; B must be 1, the state has N rows.
        forget_gate: "sigmoid" or "exp".
        checkpoint_every: for training with less memory, keep x and one state for every so many steps instead of four gates and
            two states for every step, and compute forward a second time in backward (docs/kernels-slstm.md has the bytes).
            Without cu_seqlens; backend "reference" takes it without effect.
        backend: None (by device), "cuda", "cpu", "simt" or "reference".

    Returns:
        h (B, S, NH, DH) in x's dtype; with return_state also the final SLSTMState.

    Raises:
        TypeError, ValueError, RuntimeError: as in `mlstm`.

    Examples:
        >>> x = torch.randn(2, 50, 4, 3, 16)  # B 2, S 50, four gates, NH 3, DH 16
        >>> R = torch.randn(4, 3, 16, 16) / 4
        >>> h, state = slstm(x, R, return_state=True)
        >>> h.shape
        torch.Size([2, 50, 3, 16])
        >>> state
        SLSTMState(h=float32 (2, 3, 16), c=float32 (2, 3, 16), n=float32 (2, 3, 16), m=float32 (2, 3, 16))
    """
    (x,) = _autocast(("x", x))
    B, S, NH, DH = _check_slstm(x, R, b, "B, S, ")
    checks.choice("forget_gate", forget_gate, ("sigmoid", "exp"))
    if reset is not None:
        checks.reset(reset, B, S, x.device)
    N = B if cu_seqlens is None else checks.cu_seqlens(cu_seqlens, B, S, x.device)
    if checkpoint_every is not None:
        if not isinstance(checkpoint_every, int) or checkpoint_every < 1:
            raise ValueError(f"checkpoint_every: got {checkpoint_every!r}, expected None or a number of steps of at least 1")
        if cu_seqlens is not None:
            raise ValueError(f"checkpoint_every: got {checkpoint_every} with cu_seqlens, expected None (rows would run in turn)")
    initial = None if state is None else _slstm_state(state, N, NH, DH, x)
    backend = resolve(backend, x.device)

    if backend == "reference":
        inputs = [x.to(state_dtype(x))] + ([] if reset is None else [reset])
        dtype = state_dtype(x)
        start = initial or tuple(x.new_zeros((N, NH, DH), dtype=dtype) for _ in range(4))

        def run_slstm(xs: Sequence[Tensor], state: Any) -> tuple[Tensor, Sequence[Tensor]]:
            bias = None if b is None else b.to(dtype)
            return reference.slstm(
                xs[0], R.to(dtype), bias, state, reset=None if reset is None else xs[1], forget_gate=forget_gate
            )

        with _without_autocast(x.device.type):
            h, last = _each_sequence(run_slstm, inputs, start, cu_seqlens)
        h = h.to(x.dtype)
    else:
        h0, c0, n0, m0 = initial or (None, None, None, None)
        operands = SLSTMOperands(x, R, b, h0, c0, n0, m0, reset, cu_seqlens)
        h, last = slstm_ops.slstm(operands, SLSTMOptions(forget_gate, False, backend), checkpoint_every)
    return (h, SLSTMState(last[0], last[1], last[2], last[3].detach())) if return_state else h


def slstm_step(
    x: Tensor,
    R: Tensor,
    b: Tensor | None,
    state: SLSTMState | Sequence[Tensor],
    *,
    forget_gate: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """One token of the scalar LSTM; arguments as in `slstm` without the S axis.

    Args:
        x: (B, 4, NH, DH). R: (4, NH, DH, DH). b: (4, NH, DH) or None.
        state: SLSTMState(h, c, n, m), each (B, NH, DH); it is left as it is.

    Returns:
        h (B, NH, DH) in x's dtype, and the new SLSTMState. Differentiable like `slstm`.

    Examples:
        >>> x, R = torch.randn(2, 4, 3, 16), torch.randn(4, 3, 16, 16) / 4
        >>> h, state = slstm_step(x, R, None, SLSTMState(*torch.zeros(4, 2, 3, 16)))
        >>> h.shape
        torch.Size([2, 3, 16])
    """
    (x,) = _autocast(("x", x))
    B, _, NH, DH = _check_slstm(x, R, b, "B, ")
    checks.choice("forget_gate", forget_gate, ("sigmoid", "exp"))
    initial = _slstm_state(state, B, NH, DH, x)
    backend = resolve(backend, x.device)
    if backend != "reference" and not differentiated(x, R, b, *initial):
        h0, c0, n0, m0 = initial
        operands = SLSTMOperands(x.unsqueeze(1), R, b, h0, c0, n0, m0, None, None)
        h, last = slstm_ops.slstm_step(operands, SLSTMOptions(forget_gate, False, backend))
        return h, SLSTMState(*last)
    h, last_state = slstm(x.unsqueeze(1), R, b, state=initial, return_state=True, forget_gate=forget_gate, backend=backend)
    return h.squeeze(1), last_state


def _autocast(*operands: tuple[str, Tensor]) -> list[Tensor]:
    """Inside autocast, float32 operands are taken in the autocast dtype, except gates, which are accepted as they are."""
    tensors = [checks.tensor(name, value) for name, value in operands]
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t.dtype == torch.float32 and name not in "if" else t for (name, _), t in zip(operands, tensors)]


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()


def _check_mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, lead: str) -> tuple[int, int, int, int, int]:
    """Shapes, dtypes and devices of the operands; B, S (1 for a step), NH, DHQK, DHHV."""
    checks.dtype("q", q, checks.FLOATING)
    checks.rank("q", q, f"({lead}NH, DHQK)")
    checks.rank("v", v, f"({lead}NH, DHHV)")
    shape, dtype, device, DHHV = q.shape, q.dtype, q.device, v.shape[-1]  # read once: decoding pays for every look
    *batch, NH, DHQK = shape
    same, gates = (dtype,), (dtype,) if dtype == torch.float64 else (dtype, torch.float32)
    checks.operand("k", k, shape, f"({lead}NH, DHQK)", same, device)
    checks.operand("v", v, (*batch, NH, DHHV), f"({lead}NH, DHHV)", same, device)
    for name, gate in (("i", i), ("f", f)):
        checks.operand(name, gate, (*batch, NH), f"({lead}NH)", gates, device)
    if NH < 1 or DHQK < 1 or DHHV < 1:
        raise ValueError(f"q, v: got shapes {tuple(shape)}, {tuple(v.shape)}, expected NH, DHQK and DHHV of at least 1")
    return batch[0], batch[1] if len(batch) > 1 else 1, NH, DHQK, DHHV


def _mlstm_numeric(scale: float | None, igate: str, normalize: bool, eps: float, DHQK: int) -> tuple[float, str, bool, float]:
    """The first fields of MLSTMOptions, checked."""
    checks.choice("igate", igate, ("exp", "sigmoid"))
    if not normalize and igate == "exp":
        raise ValueError("normalize: got False with igate 'exp', expected True (only igate 'sigmoid' may go without)")
    if not eps >= 0:
        raise ValueError(f"eps: got {eps!r}, expected a number of at least 0")
    return DHQK**-0.5 if scale is None else float(scale), igate, bool(normalize), float(eps)


def _by_name(options: MLSTMOptions) -> dict[str, Any]:
    """The options that are arguments of the definition."""
    return dict(zip(options._fields[:4], options))


def _started_afresh(k: Tensor, i: Tensor, f: Tensor, reset: Tensor, igate: str) -> tuple[Tensor, Tensor, Tensor]:
    """k, i, f with which the kernels start afresh where reset (B, S) says so, by a forget gate of -inf.

    After f = -inf, m is the step's own i; after a fresh state it is max(log sigmoid(f), i), which decides in which units the
    returned state and the floor of the normaliser count. So i becomes that m, a gauge without gradient, and k takes what i
    loses: exp(i - m) <= 1.
    """
    starts = reset.unsqueeze(-1)
    i, f = (gate.to(state_dtype(k)) for gate in (i, f))
    if igate == "exp":
        with torch.no_grad():
            # float16 has no room for small factors: there m is at most i + 6, the same state in another gauge.
            m = torch.maximum(i, torch.minimum(logsigmoid(f), i + 6) if k.dtype == torch.float16 else logsigmoid(f))
        lost = (i - m).masked_fill(~starts | (m == -torch.inf), 0)
        k = (k * torch.exp(lost).unsqueeze(-1)).to(k.dtype)
        i = torch.where(starts, m, i)
    return k, i, f.masked_fill(starts, -torch.inf)


def _mlstm_shapes(N: int, NH: int, DHQK: int, DHHV: int) -> list[tuple[int, ...]]:
    return [(N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH)]


def _mlstm_state(state: object, N: int, NH: int, DHQK: int, DHHV: int, like: Tensor) -> Any:
    axes = ("(N, NH, DHQK, DHHV)", "(N, NH, DHQK)", "(N, NH)")
    return checks.state(state, ("C", "n", "m"), _mlstm_shapes(N, NH, DHQK, DHHV), axes, state_dtype(like), like.device)


def _check_slstm(x: Tensor, R: Tensor, b: Tensor | None, lead: str) -> tuple[int, int, int, int]:
    """Shapes, dtypes and devices of the operands; B, S (1 for a step), NH, DH."""
    checks.dtype("x", x, checks.FLOATING)
    checks.rank("x", x, f"({lead}4, NH, DH)")
    *batch, gates, NH, DH = x.shape
    if gates != 4 or NH < 1 or DH < 1:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected ({lead}4, NH, DH) with NH and DH of at least 1")
    _check_weight("R", R, x, (4, NH, DH, DH), "(4, NH, DH, DH)")
    if b is not None:
        _check_weight("b", b, x, (4, NH, DH), "(4, NH, DH)")
    return batch[0], batch[1] if len(batch) > 1 else 1, NH, DH


def _check_weight(name: str, weight: Tensor, x: Tensor, expected: tuple[int, ...], axes: str) -> None:
    dtypes = (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32)
    checks.operand(name, checks.tensor(name, weight), expected, axes, dtypes, x.device)


def _slstm_state(state: object, N: int, NH: int, DH: int, like: Tensor) -> Any:
    axes, shapes = ("(N, NH, DH)",) * 4, ((N, NH, DH),) * 4
    return checks.state(state, ("h", "c", "n", "m"), shapes, axes, state_dtype(like), like.device)


def _each_sequence(
    run: Callable, inputs: Sequence[Tensor], state: Sequence[Tensor], cu_seqlens: Tensor | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs the reference over the batch, or over one sequence of cu_seqlens after the other."""
    if cu_seqlens is None:
        return run(inputs, state)
    borders = cu_seqlens.tolist()
    if len(borders) == 1:
        return run([x[:, :0] for x in inputs], state)
    results = [
        run([x[:, start:end] for x in inputs], tuple(s[row : row + 1] for s in state))
        for row, (start, end) in enumerate(itertools.pairwise(borders))
    ]
    return torch.cat([h for h, _ in results], 1), [torch.cat(parts) for parts in zip(*(last for _, last in results))]
