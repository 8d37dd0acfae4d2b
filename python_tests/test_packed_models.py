"""cu_seqlens at every level: sequences packed on one axis equal the same sequences alone, states and gradients included."""

import pytest
import torch
from randomised import randomised
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import xlstm_cuda
from xlstm_cuda.blocks import mLSTMBlock, mLSTMLayer, sLSTMBlock, sLSTMLayer, xLSTMBlockStack

D, VOCAB = 16, 20
LENGTHS = [[5, 1, 7], [3], [0, 4, 0, 0, 2, 9, 0], [1, 1, 1], [70, 2, 65], [0]]


def slstm_config(**changes):
    return xlstm_cuda.sLSTMLayerConfig(embedding_dim=D, num_heads=2, recurrent_weight_init="standard", **changes)


def mlstm_config(**changes):
    return xlstm_cuda.mLSTMLayerConfig(embedding_dim=D, num_heads=2, **changes)


def lm_config():
    return dict(
        embedding_dim=D, num_blocks=2, slstm_at=[1],
        mlstm_block=xlstm_cuda.mLSTMBlockConfig(mlstm_config()), slstm_block=xlstm_cuda.sLSTMBlockConfig(slstm_config()),
    )  # fmt: skip


MODELS = {
    "mLSTMLayer": lambda: mLSTMLayer(mlstm_config()),
    "mLSTMLayer without convolution": lambda: mLSTMLayer(mlstm_config(conv1d_kernel_size=0)),
    "mLSTMLayer kernel 1": lambda: mLSTMLayer(mlstm_config(conv1d_kernel_size=1)),
    "sLSTMLayer": lambda: sLSTMLayer(slstm_config()),
    "mLSTMBlock": lambda: mLSTMBlock(xlstm_cuda.mLSTMBlockConfig(mlstm_config())),
    "sLSTMBlock": lambda: sLSTMBlock(xlstm_cuda.sLSTMBlockConfig(slstm_config())),
    "stack": lambda: xLSTMBlockStack(xlstm_cuda.xLSTMBlockStackConfig(**lm_config())),
    "LM": lambda: xlstm_cuda.xLSTMLMModel(xlstm_cuda.xLSTMLMModelConfig(vocab_size=VOCAB, **lm_config())),
    "Large": lambda: xlstm_cuda.xLSTMLarge(
        xlstm_cuda.xLSTMLargeConfig(embedding_dim=D, num_heads=2, num_blocks=2, vocab_size=VOCAB, return_last_states=True)
    ),
    "sLSTM": lambda: xlstm_cuda.sLSTM(D, 8, 2, num_heads=2, batch_first=True, bidirectional=True),
    "mLSTM": lambda: xlstm_cuda.mLSTM(D, 8, 2, num_heads=2, batch_first=True, bidirectional=True),
}


def build(kind):
    return randomised(MODELS[kind]().double(), by=0.1)


def run(kind, model, x, state=None, cu_seqlens=None):
    if kind in ("Large", "sLSTM", "mLSTM"):
        return model(x, state, cu_seqlens=cu_seqlens)
    return model(x, state, True, cu_seqlens=cu_seqlens)


def batch_axis(kind, leaf):
    """Where a state tensor has its rows: the layers lead with the cells, the official sLSTM state with h, c, n, m."""
    return 1 if kind in ("sLSTM", "mLSTM") or (leaf.shape[0] == 4 and leaf.dim() == 3 and leaf.shape[2] == D) else 0


def inputs(kind, T):
    return torch.randint(0, VOCAB, (1, T)) if kind in ("LM", "Large") else torch.randn(1, T, D, dtype=torch.float64)


def joined(kind, states):
    """The states of several sequences as that of a pack."""
    return tree_map(lambda *leaves: leaves[0] if leaves[0] is None else torch.cat(leaves, batch_axis(kind, leaves[0])), *states)


def tensors(state):
    """Those in a nested state; a layer without convolution has None in its place."""
    return [leaf for leaf in tree_leaves(state) if leaf is not None]


def borders(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize(
    ("lengths", "with_state"),
    [(lengths, with_state) for lengths in LENGTHS for with_state in (False, True)],
    ids=lambda value: {True: "state", False: "fresh"}[value] if isinstance(value, bool) else str(value),
)
@pytest.mark.parametrize("kind", MODELS)
def test_packed_equals_separate(kind, lengths, with_state):
    model = build(kind)
    pieces = [inputs(kind, length) for length in lengths]
    packed = torch.cat(pieces, 1)
    starts = [None] * len(lengths)
    if with_state:
        with torch.no_grad():
            starts = [run(kind, model, inputs(kind, 6 + row))[1] for row in range(len(lengths))]
        for leaf in tensors(starts):
            leaf.requires_grad_()
    results = [run(kind, model, piece, start) for piece, start in zip(pieces, starts)]
    y, last = run(kind, model, packed, joined(kind, starts) if with_state else None, borders(lengths))
    parameters = [*model.parameters(), *tensors(starts)]
    expected = torch.cat([y for y, _ in results], 1)
    torch.testing.assert_close(y, expected, atol=1e-9, rtol=1e-8)
    expected_last = joined(kind, [state for _, state in results])
    for got, wanted in zip(tensors(last), tensors(expected_last), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-8)

    def loss(y, state):
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        return (y * weights).sum() + sum(leaf.square().sum() for leaf in tensors(state) if leaf.requires_grad)

    gradients = [
        torch.autograd.grad(loss(*pair), parameters, allow_unused=True, materialize_grads=True)
        for pair in ((y, last), (expected, expected_last))
    ]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("kind", ["LM", "Large"])
def test_packed_equals_separate_in_float32(kind):
    model, lengths = build(kind).float(), [40, 3, 64, 21]
    pieces = [inputs(kind, length) for length in lengths]
    y, _ = run(kind, model, torch.cat(pieces, 1), None, borders(lengths))
    expected = torch.cat([run(kind, model, piece)[0] for piece in pieces], 1)
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_no_sequence_at_all(kind):
    y, state = run(kind, build(kind), inputs(kind, 0), None, borders([]))
    assert y.shape[:2] == (1, 0)
    assert all(leaf.numel() == 0 for leaf in tensors(state))


def test_a_convolution_that_must_be_called_restarts_too():
    model, lengths = build("sLSTMLayer"), [3, 1, 5]
    packed = inputs("sLSTMLayer", 9)
    expected = run("sLSTMLayer", model, packed, None, borders(lengths))[0]
    nn.utils.parametrizations.weight_norm(model.conv1d.conv)
    torch.testing.assert_close(run("sLSTMLayer", model, packed, None, borders(lengths))[0], expected)


@pytest.mark.parametrize("kind", MODELS)
def test_borders_that_do_not_fit_raise(kind):
    model, x = build(kind), inputs(kind, 6)
    for wrong, error in (([0, 5], ValueError), ([0, 4, 2, 6], ValueError), ([1, 6], ValueError), ([[0, 6]], ValueError)):
        with pytest.raises(error, match="cu_seqlens"):
            run(kind, model, x, None, torch.tensor(wrong).int())
    with pytest.raises(TypeError, match="cu_seqlens"):
        run(kind, model, x, None, torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="cu_seqlens: needs B = 1"):
        run(kind, model, torch.cat([x, x]), None, torch.tensor([0, 6]).int())
    with pytest.raises(ValueError, match="state"):
        run(kind, model, x, run(kind, model, x)[1], torch.tensor([0, 3, 6]).int())


def test_borders_beside_a_packed_sequence_raise():
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, D)])
    with pytest.raises(ValueError, match="cu_seqlens: got borders beside a PackedSequence"):
        xlstm_cuda.sLSTM(D, 8, num_heads=2)(packed, cu_seqlens=torch.tensor([0, 3]).int())
