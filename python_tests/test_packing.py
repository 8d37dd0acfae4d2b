"""Packing documents, attention masks, reset at every level, and states by rows: a batch equals its sequences alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_packed_models import MODELS, VOCAB, D, build, inputs, joined, tensors
from torch import nn
from torch.utils._pytree import tree_leaves

import xlstm_cuda
from xlstm_cuda import MLSTMState, packing, states

S = 11
RESETS = {"none": [[], []], "first step": [[0], []], "every step": [list(range(S)), [4]], "some": [[2, 3, 9], [0, 10]]}
every_kind = pytest.mark.parametrize("kind", MODELS)


def run(kind, model, x, state=None, **options):
    if kind in ("sLSTM", "mLSTM"):
        return model(x, state, **options)
    return model(x, state, True, **options)


def batch(kind, rows=2, steps=S):
    return torch.cat([inputs(kind, steps) for _ in range(rows)])


def flags(rows):
    reset = torch.zeros(len(rows), S, dtype=torch.bool)
    for row, steps in enumerate(rows):
        reset[row, steps] = True
    return reset


def stretches(kind, model, x, state, rows):
    """Output and final state, every stretch between resets on its own; only the first of a row sees the given state."""
    ys, lasts = [], []
    for row, steps in enumerate(rows):
        borders, parts, firsts = [0, *steps, S], [], None
        before = None if state is None else states.select(state, [row])
        for index, (start, end) in enumerate(itertools.pairwise(borders)):
            y, last = run(kind, model, x[row : row + 1, start:end], before if index == 0 else None)
            parts.append(y)
            firsts = last if firsts is None and end > start else firsts
        ys.append(torch.cat(parts, 1))
        lasts.append((firsts, last))
    if kind in ("sLSTM", "mLSTM"):  # the last state of a reverse cell comes from the first stretch with steps
        joint = [type(last)(*(torch.stack([b[0], a[1], b[2], a[3]]) for a, b in zip(*pair))) for pair in lasts]
    else:
        joint = [last for _, last in lasts]
    return torch.cat(ys), joined(kind, joint)


def given_state(kind, model, rows=2):
    with torch.no_grad():
        state = run(kind, model, batch(kind, rows, 6))[1]
    for leaf in tensors(state):
        leaf.requires_grad_()
    return state


# A layer of both directions with a given state has a test of its own.
@pytest.mark.parametrize("name", RESETS)
@every_kind
def test_reset_equals_separate(kind, name):
    model, rows = build(kind), RESETS[name]
    x = batch(kind)
    state = None if kind in ("sLSTM", "mLSTM") else given_state(kind, model)
    results = run(kind, model, x, state, reset=flags(rows)), stretches(kind, model, x, state, rows)
    for got, wanted in zip(*(tree_leaves(result) for result in results), strict=True):
        if wanted is not None:
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)
    variables = [*model.parameters(), *(tensors(state) if state is not None else [])]

    def loss(y, last):
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        return (y * weights).sum() + sum(leaf.square().sum() for leaf in tensors(last) if leaf.requires_grad)

    gradients = [torch.autograd.grad(loss(*result), variables, allow_unused=True, materialize_grads=True) for result in results]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("kind", ["LM", "Large"])
def test_reset_equals_separate_in_float32(kind):
    model, x = build(kind).float(), batch(kind)
    y, _ = run(kind, model, x, reset=flags(RESETS["some"]))
    expected, _ = stretches(kind, model, x, None, RESETS["some"])
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
@pytest.mark.parametrize("layout", ["steps first", "batch first", "unbatched"])
def test_reset_of_a_layer_has_the_axes_of_its_input(kind, layout):
    layer = getattr(xlstm_cuda, kind)(D, 8, 2, num_heads=2, batch_first=layout == "batch first", bidirectional=True).double()
    x, reset = batch(kind), flags(RESETS["some"])
    expected = torch.cat([layer(x[:1, a:b] if layout == "batch first" else x[0, a:b, None])[0].view(b - a, -1)
                          for a, b in ((0, 2), (2, 3), (3, 9), (9, S))])  # fmt: skip
    if layout == "batch first":
        got = layer(x, reset=reset)[0][0]
    elif layout == "steps first":
        got = layer(x.transpose(0, 1), reset=reset.t())[0][:, 0]
    else:
        got = layer(x[0], reset=reset[0])[0]
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
def test_a_given_state_enters_each_direction_at_its_end(kind):
    """With borders, a reset at the first step of a sequence drops the forward state alone, not its neighbour's reverse state."""
    model, x, cu_seqlens = build(kind), inputs(kind, S), torch.tensor([0, 4, S]).int()
    state, reset = given_state(kind, model), flags([[4, 6]])
    y, last = run(kind, model, x, state, cu_seqlens=cu_seqlens, reset=reset)
    rows = [states.select(state, [row]) for row in (0, 1)]
    first, first_last = run(kind, model, x[:, :4], rows[0])
    torch.testing.assert_close(y[:, :4], first, atol=1e-9, rtol=1e-8)
    for got, wanted in zip(states.select(last, [0]), first_last):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)
    one, _ = run(kind, model, x[:, 4:], rows[1], reset=reset[:, 4:])
    torch.testing.assert_close(y[:, 4:], one, atol=1e-9, rtol=1e-8)


@every_kind
def test_reset_beside_borders(kind):
    model, x = build(kind), inputs(kind, S)
    borders = torch.tensor([0, 0, 3, 3, S]).int()
    y, last = run(kind, model, x, cu_seqlens=borders, reset=flags([[3, 4, 8]]))
    cut = torch.tensor([0, 3, 4, 8, S]).int()
    expected, expected_last = run(kind, model, x, cu_seqlens=cut)
    torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-8)
    if kind not in ("sLSTM", "mLSTM"):
        for got, wanted in zip(tensors(states.select(last, [1, 3])), tensors(states.select(expected_last, [0, 3]))):
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)


@every_kind
def test_reset_that_does_not_fit_raises(kind):
    model, x = build(kind), batch(kind)
    with pytest.raises(TypeError, match="reset: got dtype int64, expected bool"):
        run(kind, model, x, reset=flags(RESETS["some"]).long())
    with pytest.raises(ValueError, match=r"reset: got shape \(11, 2\), expected \(B, S\) = \(2, 11\)"):
        run(kind, model, x, reset=flags(RESETS["some"]).t())
    with pytest.raises(TypeError, match="reset: got list"):
        run(kind, model, x, reset=[True])


def test_large_returns_its_state_when_asked():
    model = xlstm_cuda.xLSTMLarge(xlstm_cuda.xLSTMLargeConfig(embedding_dim=D, num_heads=2, num_blocks=1, vocab_size=VOCAB))
    ids = inputs("Large", 5)
    logits, state = model(ids, None, True)
    assert torch.equal(logits, model(ids)) and set(state) == {0}


def test_reset_beside_a_packed_sequence_raises():
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, D)])
    with pytest.raises(ValueError, match="reset: got a tensor beside a PackedSequence"):
        xlstm_cuda.sLSTM(D, 8, num_heads=2)(packed, reset=torch.zeros(3, 1, dtype=torch.bool))


def test_a_convolution_that_must_be_called_restarts_too():
    model, x, reset = build("sLSTMLayer"), batch("sLSTMLayer"), flags(RESETS["some"])
    expected = run("sLSTMLayer", model, x, reset=reset)[0]
    nn.utils.parametrizations.weight_norm(model.conv1d.conv)
    torch.testing.assert_close(run("sLSTMLayer", model, x, reset=reset)[0], expected)


@pytest.mark.parametrize("kind", ["LM", "Large"])
def test_reset_is_compiled_and_exported(kind):
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = build(kind)

        def forward(self, x, reset):
            return self.model(x, reset=reset)[0] if kind == "Large" else self.model(x, reset=reset)

    model, x, reset = Logits(), batch(kind), flags(RESETS["some"])
    expected = model(x, reset)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x, reset), expected)
    steps = torch.export.Dim("S", min=2, max=64)
    exported = torch.export.export(model, (x, reset), dynamic_shapes=({1: steps}, {1: steps})).module()
    torch.testing.assert_close(exported(x[:, :7], reset[:, :7]), expected[:, :7])


# ---- attention masks


LENGTHS = [4, 7, 0, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["LM", "Large", "mLSTMLayer", "sLSTMLayer"])
def test_padded_rows_equal_unpadded_ones(kind, side):
    model = build(kind)
    rows = [inputs(kind, length) for length in LENGTHS]
    longest = max(LENGTHS)
    x, mask = batch(kind, len(rows), longest), torch.zeros(len(rows), longest, dtype=torch.int64)
    for r, row in enumerate(rows):
        place = slice(longest - LENGTHS[r], None) if side == "left" else slice(0, LENGTHS[r])
        x[r, place], mask[r, place] = row[0], 1
    found = packing.from_attention_mask(mask)
    results = [run(kind, model, row) for row in rows]
    expected, expected_last = torch.cat([y for y, _ in results], 1), joined(kind, [last for _, last in results])
    masked, masked_last = run(kind, model, x, reset=found.reset)
    packed, packed_last = run(kind, model, found.pack(x), cu_seqlens=found.cu_seqlens)
    torch.testing.assert_close(masked[mask.bool()].unsqueeze(0), expected, atol=1e-9, rtol=1e-8)
    torch.testing.assert_close(packed, expected, atol=1e-9, rtol=1e-8)
    torch.testing.assert_close(found.unpack(packed)[mask.bool()], packed[0], atol=0, rtol=0)
    assert not found.unpack(packed)[~mask.bool()].any()
    for got, wanted in zip(tensors(packed_last), tensors(expected_last), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)
    if side == "left":
        full = [0, 1, 3]  # a row without a token has read its padding
        for got, wanted in zip(tensors(states.select(masked_last, full)), tensors(states.select(expected_last, full))):
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (1, 1)])
def test_masks_of_any_shape_and_dtype(shape, dtype):
    found = packing.from_attention_mask(torch.ones(shape, dtype=dtype))
    assert found.reset.shape == shape and len(found.cu_seqlens) == shape[0] + 1
    assert found.positions.numel() == shape[0] * shape[1] == int(found.cu_seqlens[-1])


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ([[1, 0]], TypeError, "mask: got list"),
        (torch.ones(2, 3), TypeError, "mask: got dtype float32"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"mask: got shape \(3,\), expected \(B, S\)"),
        (torch.tensor([[1, 2]]), ValueError, "mask: got values other than 0 and 1"),
        (torch.tensor([[1, 1, 1], [1, 0, 1]]), ValueError, "mask: got padding between the tokens of row 1"),
    ],
)
def test_masks_that_do_not_fit_raise(mask, error, words):
    with pytest.raises(error, match=words):
        packing.from_attention_mask(mask)


# ---- documents


def test_documents_are_packed_and_unpacked():
    documents = [torch.randint(0, VOCAB, (length,)) for length in (5, 0, 1, 8)]
    tokens, cu_seqlens = packing.pack(documents)
    assert tokens.shape == (1, 14) and cu_seqlens.tolist() == [0, 5, 5, 6, 14] and cu_seqlens.dtype == torch.int32
    for got, wanted in zip(packing.unpack(tokens, cu_seqlens), documents, strict=True):
        assert torch.equal(got, wanted)
    model = build("LM")
    for got, document in zip(packing.unpack(model(tokens, cu_seqlens=cu_seqlens), cu_seqlens), documents, strict=True):
        torch.testing.assert_close(got, model(document[None])[0], atol=1e-9, rtol=1e-8)


def test_documents_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="documents: got none"):
        packing.pack([])
    with pytest.raises(TypeError, match="documents: got Tensor"):
        packing.pack(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"documents\[1\]: got list"):
        packing.pack([torch.zeros(2), [1.0]])
    with pytest.raises(TypeError, match=r"documents\[1\]: got dtype int64, expected float32"):
        packing.pack([torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"documents\[1\]: got shape \(2, 3\)"):
        packing.pack([torch.zeros(2), torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=r"documents\[0\]: got shape \(\)"):
        packing.pack([torch.tensor(1.0)])
    with pytest.raises(ValueError, match="cu_seqlens: got"):
        packing.unpack(torch.zeros(1, 3), torch.tensor([0, 2]).int())


# ---- states


@every_kind
def test_rows_of_a_state_are_chosen_and_repeated(kind):
    model, x = build(kind), batch(kind, 3)
    _, state = run(kind, model, x)
    rows = [2, 0, 2]
    for chosen in (states.select(state, rows), states.select(state, torch.tensor(rows))):
        got, wanted = run(kind, model, x[rows], chosen), run(kind, model, x, state)
        torch.testing.assert_close(got[0], wanted[0][rows], atol=1e-12, rtol=1e-10)
        assert [type(part) for part in tree_leaves(chosen)] == [type(part) for part in tree_leaves(state)]
        assert type(chosen) is type(state)
    repeated = states.expand(states.select(state, [1]), 3)
    got = run(kind, model, x, repeated)[0]
    wanted = torch.cat([run(kind, model, x[r : r + 1], states.select(state, [1]))[0] for r in range(3)])
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-10)
    assert [leaf.tolist() for leaf in tensors(states.expand(state, 2))] == [
        leaf.tolist() for leaf in tensors(states.select(state, [0, 0, 1, 1, 2, 2]))
    ]
    assert all(leaf.numel() == 0 for leaf in tensors(states.select(state, [])))


@every_kind
def test_states_move_and_lose_their_history(kind):
    state = run(kind, build(kind), batch(kind))[1]
    assert any(leaf.requires_grad for leaf in tensors(state))
    free = states.detach(state)
    assert not any(leaf.requires_grad for leaf in tensors(free))
    assert [leaf.data_ptr() for leaf in tensors(free)] == [leaf.data_ptr() for leaf in tensors(state)]
    moved = states.to(state, "meta")
    assert all(leaf.device.type == "meta" for leaf in tensors(moved)) and type(moved) is type(state)


def test_gradients_pass_a_choice_of_rows():
    state = MLSTMState(*(torch.randn(2, 3, *axes, requires_grad=True) for axes in ((4, 4), (4,), ())))
    states.select(state, [1, 1]).C.sum().backward()
    assert state.C.grad[0].eq(0).all() and state.C.grad[1].eq(2).all()
    assert states.select(None, [0]) is None


def test_what_is_no_state_raises():
    state = MLSTMState(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="state: got str"):
        states.detach({"block_0": "C"})
    with pytest.raises(ValueError, match=r"rows: got \[0, 2\], expected numbers from 0 to 1"):
        states.select(state, [0, 2])
    with pytest.raises(ValueError, match=r"rows: got \[-1\]"):
        states.select(state, torch.tensor([-1]))
    with pytest.raises(TypeError, match="rows: got"):
        states.select(state, [0.5])
    with pytest.raises(TypeError, match="rows: got dtype bool"):
        states.select(state, torch.tensor([True, False]))
    with pytest.raises(ValueError, match="n: got -1"):
        states.expand(state, -1)
