"""cp_group: ranks with a piece of the sequence each equal one process with the whole, states and gradients included.

Three gloo processes run every case once, in groups of three, two and one; each rank computes the whole by itself, too, and
compares. The tests read what the ranks wrote down.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import traceback
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from randomised import randomised
from torch import distributed
from torch.utils._pytree import tree_leaves, tree_map

from xlstm_cuda import (
    MLSTMState,
    functional,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStackConfig,
    xLSTMLarge,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm_cuda.backends import backends
from xlstm_cuda.blocks import mLSTMBlock, mLSTMLayer, sLSTMBlock, xLSTMBlockStack
from xlstm_cuda.ops import context

PAGE = Path(__file__).parents[1] / "docs" / "distributed.md"
RANKS = 3
B, NH, DHQK, DHHV, D, VOCAB = 2, 2, 3, 4, 16, 20
SPLITS = {
    2: {"even": [6, 6], "uneven": [3, 9], "nothing first": [0, 12], "nothing last": [12, 0]},
    3: {"even": [4, 4, 4], "uneven": [7, 1, 4], "nothing between": [5, 0, 7], "short": [1, 2, 9], "nothing first": [0, 5, 7]},
}
S = 12
BORDERS = {  # of the sequences of cu_seqlens, by where the pieces' own borders fall
    "at the pieces": [0, 4, 6, 8, 12],
    "inside": [0, 3, 10, 12],
    "one over all": [0, 12],
    "empty ones": [0, 0, 3, 3, 6, 6, 7, 12, 12],
}
EXACT = dict(atol=1e-12, rtol=1e-12)


# -- one case of functional.mlstm -----------------------------------------------------------------------------------------------


def operands(rows, dtype=torch.float64):
    """q, k, v, i, f of the whole, gates of some size."""
    wide = [torch.randn(rows, S, NH, d, dtype=torch.float64) for d in (DHQK, DHQK, DHHV)]
    gates = [2 * torch.randn(rows, S, NH, dtype=torch.float64) for _ in range(2)]
    return [x.to(dtype) for x in wide + gates]


def states(rows, dtype=torch.float64):
    return [torch.randn(rows, NH, *shape, dtype=dtype) for shape in ((DHQK, DHHV), (DHQK,), ())]


def piece_of(group, split):
    """First step and end of this rank's piece."""
    lengths = SPLITS[distributed.get_world_size(group)][split]
    borders = [0, *itertools.accumulate(lengths)]
    rank = distributed.get_rank(group)
    return borders[rank], borders[rank + 1]


def ending_here(group, start, end, rows, cu_seqlens):
    """bool (rows): the sequences whose last step this rank holds (an empty one's: the rank that its border is on)."""
    rank, last = distributed.get_rank(group), distributed.get_world_size(group) - 1
    if cu_seqlens is None:
        return torch.full((rows,), rank == last)
    ends = cu_seqlens[1:]
    return (ends <= end) & ((ends > start) | torch.tensor(rank == 0))


def leaf(x):
    return x.detach().clone().requires_grad_()


def compare(group, tensors, state, split, *, cu_seqlens=None, reset=None, on_states=True, tolerance=EXACT, **options):
    """h, last states and every gradient of the pieces against those of the whole.

    on_states=False: the loss is on h alone. In float32 a large m is a coarse number, and C counts in its units.
    """
    start, end = piece_of(group, split)
    rank = distributed.get_rank(group)
    rows = len(tensors[0]) if cu_seqlens is None else len(cu_seqlens) - 1
    weight = torch.randn(tensors[2].shape, dtype=torch.float64).to(tensors[2].dtype)
    by_state = [torch.randn(rows, NH, *shape) for shape in ((DHQK, DHHV), (DHQK,))]

    def loss(h, last, weight, rows):
        terms = [(x * w)[rows].sum() for x, w in zip(last, by_state)]
        return (h * weight).sum() + sum(terms if on_states else ())

    whole, before = [leaf(x) for x in tensors], None if state is None else [leaf(x) for x in state]
    h, last = functional.mlstm(*whole, state=before, cu_seqlens=cu_seqlens, reset=reset, return_state=True, **options)
    loss(h, last, weight, slice(None)).backward()

    pieces, given = [leaf(x[:, start:end]) for x in tensors], None if state is None else [leaf(x) for x in state]
    piece_h, piece_last = functional.mlstm(
        *pieces, state=given if rank == 0 or cu_seqlens is not None else None, cu_seqlens=cu_seqlens,
        reset=None if reset is None else reset[:, start:end], return_state=True, cp_group=group, **options,
    )  # fmt: skip
    ends = ending_here(group, start, end, rows, cu_seqlens)
    loss(piece_h, piece_last, weight[:, start:end], ends).backward()
    start_gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in given or ()]
    for gradient in start_gradients:
        distributed.all_reduce(gradient, group=group)

    close = partial(torch.testing.assert_close, **tolerance)
    assert piece_h.isfinite().all()
    close(piece_h, h[:, start:end])
    if not on_states:
        gauge = (piece_last.m - last.m).exp()
        piece_last = MLSTMState(piece_last.C * gauge[..., None, None], piece_last.n * gauge[..., None], last.m)
    for name, x, expected in zip("Cnm", piece_last, last):
        close(x[ends], expected[ends], msg=lambda text, name=name: f"{name}: {text}")
    for name, x, expected in zip("qkvif", pieces, whole):
        close(x.grad, expected.grad[:, start:end], msg=lambda text, name=name: f"d{name}: {text}")
    for name, x, expected in zip("Cnm", start_gradients, before or ()):
        close(x, expected.grad, msg=lambda text, name=name: f"d{name}0: {text}")


def one_call(group, *, split="uneven", given=True, borders=None, resets=False, dtype=torch.float64, change=None, **options):
    cu_seqlens = None if borders is None else torch.tensor(BORDERS[borders], dtype=torch.int32)
    rows = B if borders is None else 1
    tensors = operands(rows, dtype)
    if change is not None:
        change(*tensors)
    reset = None
    if resets:
        reset = torch.rand(rows, S) < 0.2
        reset[0, [0, 3, 6]] = True  # at the first step of pieces, too
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    state = states(rows if borders is None else len(cu_seqlens) - 1, kept) if given else None
    compare(group, tensors, state, split, cu_seqlens=cu_seqlens, reset=reset, **options)


def closed_gates(q, k, v, i, f):
    """Gates that forget all, write nothing, both, and sums of gates far beyond exp's range."""
    f[:, 2], f[0, 8], f[:, 5, 0] = -torch.inf, -torch.inf, -1e4
    i[:, 1], i[0, 8], i[:, 10, 1] = -torch.inf, -torch.inf, 60.0
    f[:, 9, 1] = 1e4
    i[:, 3:5, 0] = -200.0


def long_decays(q, k, v, i, f):
    """Sums of log gates of which small differences count: what the first steps wrote is as large as what comes after them."""
    decay = torch.zeros(S)
    decay[4:8] = 33333.37
    f -= decay[:, None]
    i += 3e5 - decay.cumsum(0)[:, None]


def small_inputs(q, k, v, i, f):
    """m comes from the fresh state, not from any input gate: then eps counts in its units."""
    f += 8
    i -= 6


def nothing_written(q, k, v, i, f):
    """The first rank writes nothing: what it hands on is fresh."""
    i[:, :7] = -torch.inf


# -- modules --------------------------------------------------------------------------------------------------------------------


def mlstm_config(**changes):
    return mLSTMLayerConfig(embedding_dim=D, num_heads=2, **changes)


def stack_config(**changes):
    return dict(embedding_dim=D, num_blocks=2, mlstm_block=mLSTMBlockConfig(mlstm_config()), **changes)


MODULES = {
    "mLSTMLayer": lambda: mLSTMLayer(mlstm_config()),
    "mLSTMLayer without convolution": lambda: mLSTMLayer(mlstm_config(conv1d_kernel_size=0)),
    "mLSTMLayer kernel 1": lambda: mLSTMLayer(mlstm_config(conv1d_kernel_size=1)),
    "mLSTMLayer kernel 6": lambda: mLSTMLayer(mlstm_config(conv1d_kernel_size=6)),
    "mLSTMBlock": lambda: mLSTMBlock(mLSTMBlockConfig(mlstm_config())),
    "stack": lambda: xLSTMBlockStack(xLSTMBlockStackConfig(**stack_config())),
    "LM": lambda: xLSTMLMModel(xLSTMLMModelConfig(vocab_size=VOCAB, **stack_config())),
    "Large": lambda: xLSTMLarge(xLSTMLargeConfig(embedding_dim=D, num_heads=2, num_blocks=2, vocab_size=VOCAB)),
}


def build(kind):
    return randomised(MODULES[kind]().double(), by=0.1)


def one_model(group, *, kind, split="uneven", borders=None, resets=False, given=True):
    """Outputs, last states, gradients of weights (summed over ranks) and of the state before the first step."""
    start, end = piece_of(group, split)
    rank, rows = distributed.get_rank(group), B if borders is None else 1
    cu_seqlens = None if borders is None else torch.tensor(BORDERS[borders], dtype=torch.int32)
    reset = torch.rand(rows, S) < 0.2 if resets else None
    model = build(kind)
    ids = kind in ("LM", "Large")
    x = torch.randint(0, VOCAB, (rows, S)) if ids else torch.randn(rows, S, D, dtype=torch.float64)
    state = None
    if given:  # what a short sequence of as many rows leaves behind
        count = rows if borders is None else len(cu_seqlens) - 1
        short = torch.randint(0, VOCAB, (count, 2)) if ids else torch.randn(count, 2, D, dtype=torch.float64)
        state = tree_map(lambda x: None if x is None else leaf(x), model(short, None, True)[1])
    leaves = [x for x in tree_leaves(state) if x is not None]

    y, last = model(x, state, True, cu_seqlens=cu_seqlens, reset=reset)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    start_gradients = [x.grad.clone() if x.grad is not None else torch.zeros_like(x) for x in leaves]
    model.zero_grad()
    for x_ in leaves:
        x_.grad = None

    here = state if rank == 0 or borders is not None else None
    piece_y, piece_last = model(
        x[:, start:end], here, True, cu_seqlens=cu_seqlens, reset=None if reset is None else reset[:, start:end], cp_group=group
    )
    (piece_y * weight[:, start:end]).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found_start = [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]
    for gradient in itertools.chain(found.values(), found_start):
        distributed.all_reduce(gradient, group=group)

    torch.testing.assert_close(piece_y, y[:, start:end], **EXACT)
    ends = ending_here(group, start, end, tree_leaves(last)[0].shape[0], cu_seqlens)
    pick = lambda state: [x[ends] for x in tree_leaves(state) if x is not None]  # noqa: E731
    torch.testing.assert_close(pick(piece_last), pick(last), **EXACT)
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        torch.testing.assert_close(found[name], expected, atol=1e-11, rtol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(found_start, start_gradients, **EXACT)


# -- what is refused ------------------------------------------------------------------------------------------------------------


def refused(error, text, call):
    with pytest.raises(error, match=text):
        call()


def here(group, *, rows=B, steps=4, heads=NH, dtype=torch.float32):
    """Operands of this rank's piece."""
    tensors = [torch.randn(rows, steps, heads, d, dtype=dtype) for d in (DHQK, DHQK, DHHV)]
    return [*tensors, *(torch.randn(rows, steps, heads, dtype=dtype) for _ in range(2))]


def first_differs(group, text, *, first, others):
    """Every rank raises, with the same words, when the first rank's arguments are not those of the others."""
    refused(ValueError, text, first if distributed.get_rank(group) == 0 else others)


def shapes_differ(group):
    plain = lambda **changes: partial(lambda: functional.mlstm(*here(group, **changes), cp_group=group))  # noqa: E731
    first_differs(group, "got NH 2 on rank 0 and 3 on rank 1, expected the same", first=plain(), others=plain(heads=3))
    first_differs(group, "got B 2 on rank 0 and 1 on rank 1", first=plain(), others=plain(rows=1))
    first_differs(group, "got dtype bfloat16 on rank 0 and float32", first=plain(dtype=torch.bfloat16), others=plain())
    sigmoid = lambda: functional.mlstm(*here(group), igate="sigmoid", cp_group=group)  # noqa: E731
    first_differs(group, "igate", first=plain(), others=sigmoid)


def borders_differ(group):
    def call(*borders):
        cu_seqlens = torch.tensor(borders, dtype=torch.int32)
        return lambda: functional.mlstm(*here(group, rows=1), cu_seqlens=cu_seqlens, cp_group=group)

    total = 4 * distributed.get_world_size(group)
    first_differs(group, "borders in cu_seqlens", first=call(0, total), others=call(0, 3, total))
    first_differs(group, "cu_seqlens 0x", first=call(0, 2, total), others=call(0, 3, total))
    refused(ValueError, f"expected borders that rise from 0 to S = {total}", call(0, 4))


def gradients_differ(group):
    def call(on):
        return lambda: functional.mlstm(*(x.requires_grad_(on) for x in here(group)), cp_group=group)

    first_differs(group, "gradients on on rank 0 and off on rank 1", first=call(True), others=call(False))


def state_of_a_later_rank(group):
    state = states(B, torch.float32)
    refused(ValueError, "state: got one on rank 1", lambda: functional.mlstm(*here(group), state=state, cp_group=group))


def no_group(group):
    refused(TypeError, "cp_group: got str, expected", lambda: functional.mlstm(*here(group), cp_group="ranks"))


def slstm_blocks(group):
    block = sLSTMBlock(sLSTMBlockConfig(sLSTMLayerConfig(embedding_dim=D, num_heads=2)))
    x = torch.randn(B, 4, D)
    refused(ValueError, "cp_group: got one for an sLSTM", lambda: block(x, cp_group=group))
    mixed = xLSTMBlockStack(
        xLSTMBlockStackConfig(**stack_config(slstm_at=[1]), slstm_block=sLSTMBlockConfig(sLSTMLayerConfig(num_heads=2)))
    )
    refused(ValueError, "cp_group: got one for an sLSTM", lambda: mixed(x, cp_group=group))


def double_backward(group):
    tensors = [x.requires_grad_() for x in here(group)]
    h = functional.mlstm(*tensors, cp_group=group, backend="reference")
    refused(
        RuntimeError, "mlstm with cp_group: double backward", lambda: torch.autograd.grad(h.sum(), tensors, create_graph=True)
    )


def forward_mode(group):
    from torch.autograd import forward_ad

    tensors = here(group)
    with forward_ad.dual_level():
        tensors[1] = forward_ad.make_dual(tensors[1], torch.ones_like(tensors[1]))
        refused(RuntimeError, "mlstm with cp_group: forward mode", lambda: functional.mlstm(*tensors, cp_group=group))


# -- what else is promised ------------------------------------------------------------------------------------------------------


def no_steps(group):
    """No step on any rank: the state goes through all of them."""
    rank, state = distributed.get_rank(group), [leaf(x) for x in states(B, torch.float32)]
    tensors = [x.requires_grad_() for x in here(group, steps=0)]
    h, last = functional.mlstm(*tensors, state=state if rank == 0 else None, return_state=True, cp_group=group)
    assert h.shape == (B, 0, NH, DHHV)
    torch.testing.assert_close(tuple(last), tuple(x.detach() for x in state))
    (h.sum() + last.C.sum()).backward()
    if rank == 0:
        torch.testing.assert_close(state[0].grad, torch.full_like(state[0], distributed.get_world_size(group)))
    empty = torch.tensor([0], dtype=torch.int32)
    h, last = functional.mlstm(*here(group, rows=1, steps=0), cu_seqlens=empty, return_state=True, cp_group=group)
    assert h.shape == (1, 0, NH, DHHV) and last.C.shape[0] == 0


def no_rows(group):
    tensors = [x.requires_grad_() for x in here(group, rows=0)]
    h, last = functional.mlstm(*tensors, return_state=True, cp_group=group)
    assert h.shape == (0, 4, NH, DHHV) and last.C.shape == (0, NH, DHQK, DHHV)
    h.sum().backward()
    assert tensors[0].grad.shape == tensors[0].shape


def state_goes_on(group):
    """Every rank's state is that after its own last step, in the units of one process."""
    tensors = operands(B)
    start, end = piece_of(group, "uneven")
    _, last = functional.mlstm(*(x[:, start:end] for x in tensors), return_state=True, cp_group=group)
    _, expected = functional.mlstm(*(x[:, :end] for x in tensors), return_state=True)
    assert isinstance(last, MLSTMState)
    torch.testing.assert_close(tuple(last), tuple(expected), **EXACT)


def nan_stays(group):
    """A NaN reaches what comes after it in its own sequence and head, on later ranks too, and nothing else."""
    cu_seqlens = torch.tensor([0, 3, 10, 12], dtype=torch.int32)
    tensors = operands(1)
    start, end = piece_of(group, "even")
    tensors[1][0, 2, 1] = torch.nan  # in the first sequence
    tensors[4][0, 4, 0] = torch.nan  # in the second, which goes on over the border
    runs = {}
    for backend in ("reference", "cpu"):
        run = partial(functional.mlstm, cu_seqlens=cu_seqlens, backend=backend)
        whole, pieces = [leaf(x) for x in tensors], [leaf(x[:, start:end]) for x in tensors]
        expected, found = run(*whole), run(*pieces, cp_group=group)
        expected.sum().backward()
        found.sum().backward()
        runs[backend] = expected[:, start:end], found, whole, pieces
    for backend, (expected, found, whole, pieces) in runs.items():
        torch.testing.assert_close(found, expected, equal_nan=True, **EXACT)
        for name, piece, one in zip("qkvif", pieces, whole):  # on the CPU one process has it in the whole chunk
            assert not (piece.grad.isnan() & ~one.grad[:, start:end].isnan()).any(), (backend, name)


def counted(group):
    """One all-gather for the arguments; then one of states and one of its gradients per layer, and as many for a convolution."""
    calls = []
    gather, reduce = distributed.all_gather, distributed.all_reduce
    distributed.all_gather = lambda *args, **options: (calls.append("gather"), gather(*args, **options))[1]
    distributed.all_reduce = lambda *args, **options: (calls.append("reduce"), reduce(*args, **options))[1]
    try:
        tensors = [x.requires_grad_() for x in here(group)]
        h = functional.mlstm(*tensors, cp_group=group)
        assert calls == ["gather"] * 2
        h.sum().backward()
        assert calls == ["gather"] * 3
        calls.clear()
        model = MODULES["stack"]()
        y = model(torch.randn(B, 4, D), cp_group=group)
        assert calls == ["gather"] * 5  # the arguments once for the whole stack
        y.sum().backward()
        assert sorted(calls[5:]) == ["gather"] * 2 + ["reduce"] * 2
    finally:
        distributed.all_gather, distributed.all_reduce = gather, reduce


def kept_for_backward(group):
    """What the exchange keeps does not grow with the number of ranks: one state, and no copy of k or v."""
    tensors = [x.requires_grad_() for x in here(group, steps=8)]
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        functional.mlstm(*tensors, cp_group=group)
    with_group = sum(sizes.values())
    sizes.clear()
    state = [leaf(x) for x in states(B, torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        functional.mlstm(*tensors, state=state)
    one_state, scalars = 4 * B * NH * (DHQK * DHHV + DHQK), 8 * B * NH * 64
    assert with_group - sum(sizes.values()) <= 2 * one_state + scalars, (with_group, sum(sizes.values()))


def recomputed(group):
    """Activation checkpointing runs the collectives again, in the same order on every rank."""
    from torch.utils.checkpoint import checkpoint

    model, x = build("mLSTMBlock"), torch.randn(B, 4, D, dtype=torch.float64)
    model(x, cp_group=group).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(lambda x: model(x, cp_group=group), x, use_reentrant=False).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def autocast(group):
    """States travel in float32 whatever autocast says."""
    tensors = operands(B, torch.float32)
    start, end = piece_of(group, "even")
    with torch.autocast("cpu", torch.bfloat16):
        h = functional.mlstm(*tensors)
        piece, last = functional.mlstm(*(x[:, start:end] for x in tensors), return_state=True, cp_group=group)
    assert piece.dtype == torch.bfloat16 and last.C.dtype == torch.float32
    torch.testing.assert_close(piece, h[:, start:end], atol=2e-2, rtol=2e-2)


def compiled(group):
    """torch.compile leaves the exchange to eager code between two graphs."""
    tensors = here(group)

    def call(*tensors):
        return functional.mlstm(*tensors, cp_group=group).sin()

    expected = call(*tensors)
    torch.testing.assert_close(torch.compile(call, backend="eager")(*tensors), expected)
    torch.compiler.reset()
    refused(Exception, "disable", lambda: torch.compile(call, backend="eager", fullgraph=True)(*tensors))


def heads(group):
    """The recipe of docs/distributed.md: half of the heads on each rank, the same outputs and gradients."""
    from torch.distributed.device_mesh import DeviceMesh

    (recipe,) = re.findall(r"```python\n(import dataclasses.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    defined = {}
    exec(compile(recipe, PAGE.name, "exec"), defined)
    model = xLSTMLarge(xLSTMLargeConfig(embedding_dim=D, num_heads=4, num_blocks=2, vocab_size=VOCAB)).double()
    x = torch.randint(0, VOCAB, (B, S))
    y = model(x)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    defined["shard_heads"](model, DeviceMesh.from_group(group, "cpu"))
    found, state = model(x, None, True)
    (found * weight).sum().backward()
    gradients = {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in model.named_parameters()}
    assert state[0][0].shape[1] == 2
    torch.testing.assert_close(found, y, **EXACT)
    torch.testing.assert_close(gradients, expected, **EXACT)


CASES = {
    **{f"{split} pieces, {backend}": partial(one_call, split=split, backend=backend)
       for backend, splits in (("cpu", ("even", "uneven", "nothing between", "nothing first", "nothing last", "short")),
                               ("reference", ("uneven",))) for split in splits},
    **{f"borders {borders}, {split}": partial(one_call, borders=borders, split=split)
       for borders in BORDERS for split in ("even", "nothing between", "nothing first", "nothing last")},
    "borders inside, reference": partial(one_call, borders="inside", split="even", backend="reference"),
    "borders, fresh": partial(one_call, borders="inside", split="uneven", given=False),
    "borders, resets": partial(one_call, borders="inside", split="even", resets=True),
    "borders, sigmoid": partial(one_call, borders="inside", split="uneven", igate="sigmoid"),
    "resets": partial(one_call, resets=True),
    "resets, nothing first": partial(one_call, resets=True, split="nothing first"),
    "resets, reference": partial(one_call, resets=True, backend="reference"),
    "resets, sigmoid": partial(one_call, resets=True, igate="sigmoid"),
    "fresh": partial(one_call, given=False),
    "fresh, nothing first": partial(one_call, given=False, split="nothing first"),
    "fresh, sigmoid": partial(one_call, given=False, igate="sigmoid"),
    "sigmoid": partial(one_call, igate="sigmoid"),
    "sigmoid, no normaliser": partial(one_call, igate="sigmoid", normalize=False),
    "eps": partial(one_call, eps=0.1),
    "eps 0": partial(one_call, eps=0.0),
    "scale, chunks": partial(one_call, scale=0.3, chunk_size=16),
    "detached": partial(one_call, normalizer_grad="detached"),
    "detached, reference": partial(one_call, normalizer_grad="detached", backend="reference"),
    "closed gates": partial(one_call, change=closed_gates),
    "closed gates, reference": partial(one_call, change=closed_gates, backend="reference"),
    "closed gates, fresh": partial(one_call, change=closed_gates, given=False),
    "closed gates, sigmoid": partial(one_call, change=closed_gates, igate="sigmoid"),
    "closed gates, borders": partial(one_call, change=closed_gates, borders="inside", split="even"),
    "nothing written": partial(one_call, change=nothing_written, given=False),
    "float32": partial(one_call, dtype=torch.float32, tolerance=dict(atol=2e-5, rtol=2e-5)),
    "fresh, small inputs, eps": partial(one_call, given=False, change=small_inputs, eps=0.1),
    "float32, long decays": partial(
        one_call, split="even", dtype=torch.float32, change=long_decays, on_states=False, tolerance=dict(atol=2e-5, rtol=2e-5)),
    "bfloat16": partial(one_call, dtype=torch.bfloat16, tolerance=dict(atol=4e-2, rtol=4e-2)),
    **{f"{kind}, {name}": partial(one_model, kind=kind, **options)
       for kind, name, options in (
           *((kind, "state", {}) for kind in MODULES),
           *((kind, "fresh, short pieces", dict(given=False, split="nothing first")) for kind in ("mLSTMLayer", "Large")),
           *((kind, "borders", dict(borders="inside", split="even")) for kind in ("mLSTMLayer", "LM", "Large")),
           ("mLSTMLayer kernel 6", "borders", dict(borders="inside", split="even")),
           *((kind, "borders at the pieces", dict(borders="at the pieces", split="even")) for kind in ("mLSTMLayer", "LM")),
           *((kind, "resets", dict(resets=True)) for kind in ("mLSTMLayer", "mLSTMLayer kernel 6", "stack", "Large")),
           ("mLSTMLayer", "borders and resets", dict(borders="empty ones", resets=True, split="uneven")),
           ("mLSTMLayer kernel 6", "pieces shorter than the kernel", dict(split="short")),
           ("mLSTMLayer kernel 6", "a piece of nothing", dict(split="nothing between")),
       )},
    **{function.__name__: function for function in (
        shapes_differ, borders_differ, gradients_differ, state_of_a_later_rank, no_group, slstm_blocks, double_backward,
        forward_mode, no_steps, no_rows, state_goes_on, nan_stays, counted, kept_for_backward, recomputed, autocast, compiled)},
}  # fmt: skip
if PAGE.exists():
    CASES["heads"] = heads
if backends()["simt"]:
    CASES["simt"] = partial(one_call, dtype=torch.float32, backend="simt", tolerance=dict(atol=5e-5, rtol=5e-5))
    CASES["simt, borders"] = partial(
        one_call, dtype=torch.float32, backend="simt", borders="inside", split="even", tolerance=dict(atol=5e-5, rtol=5e-5)
    )


def possible(size, case):
    """The group's size has such a split and divides the heads; compiling is slow, so it is done in one group alone."""
    if case in (compiled, heads):
        return size == 2
    return not isinstance(case, partial) or case.keywords.get("split", "uneven") in SPLITS[size]


IDS = [f"{size} ranks, {name}" for size in (3, 2) for name, case in CASES.items() if possible(size, case)]


def one_rank(group):
    """A group of one is a plain call: the same bits, sLSTM blocks too, and nothing is exchanged."""
    gather, distributed.all_gather = distributed.all_gather, None
    try:
        tensors, state = operands(B), states(B)
        found = functional.mlstm(*tensors, state=state, cp_group=group)
        assert torch.equal(found, functional.mlstm(*tensors, state=state))
        block = sLSTMBlock(sLSTMBlockConfig(sLSTMLayerConfig(embedding_dim=D, num_heads=2)))
        block(torch.randn(B, 4, D), cp_group=group)
    finally:
        distributed.all_gather = gather


def not_a_member(group):
    refused(ValueError, "cp_group: this process is not a member", lambda: functional.mlstm(*here(group), cp_group=group))


# -- the processes --------------------------------------------------------------------------------------------------------------


def worker(rank: int, folder: str) -> None:
    """Runs every case; writes down what went wrong, by case."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    warnings.simplefilter("ignore")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS, timeout=datetime.timedelta(minutes=5)
    )
    pair, single = distributed.new_group([1, 2]), [distributed.new_group([member]) for member in range(RANKS)][rank]
    groups = {2: pair, 3: distributed.group.WORLD}
    cases = [(name, groups[int(name[0])], CASES[name.split(", ", 1)[1]]) for name in IDS if rank > 0 or name[0] == "3"]
    cases.append(("one rank", single, one_rank))
    if rank == 0:
        cases.append(("not a member", pair, not_a_member))
    results = {}
    for name, group, case in cases:
        torch.manual_seed(sum(name.encode()))
        try:
            case(group)
            results[name] = ""
        except (Exception, pytest.fail.Exception):
            results[name] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


WITHOUT_GLOO = not (distributed.is_available() and distributed.is_gloo_available())


@pytest.mark.skipif(WITHOUT_GLOO, reason="this torch has no gloo")
@pytest.mark.parametrize("name", [*IDS, "one rank", "not a member"])
def test_pieces_equal_the_whole(results, name):
    found = {rank: result[name] for rank, result in enumerate(results) if name in result}
    expected = {"not a member": 1, "one rank": RANKS}.get(name) or int(name[0])
    assert len(found) == expected, f"only ranks {list(found)} came to this case"
    assert not any(found.values()), "\n".join(f"rank {rank}: {text}" for rank, text in found.items() if text)


# -- the summary alone ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("igate", ["exp", "sigmoid"])
@pytest.mark.parametrize("block", [2, 2048])
def test_summary_against_autograd(igate, block, monkeypatch):
    monkeypatch.setattr(context, "BLOCK", block)
    _, k, v, i, f = (leaf(x) for x in operands(B))
    own = torch.rand(B, S) < 0.7

    def summary(k, v, i, f):
        C, n, m, G = context._Summary.apply(k, v, i, f, own, igate)
        return C * m.exp()[..., None, None], n * m.exp()[..., None], G  # in true units: gradients are taken at fixed m

    assert torch.autograd.gradcheck(summary, (k, v, i, f))


def test_a_group_without_distributed_is_named():
    with pytest.raises(TypeError, match=r"cp_group: got int, expected a torch\.distributed\.ProcessGroup"):
        functional.mlstm(*operands(B), cp_group=3)
