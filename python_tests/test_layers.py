"""xlstm_cuda.sLSTM and mLSTM compute what their equations say, in every form of input, with every gradient."""

from __future__ import annotations

from typing import Any

import layers_by_hand as by_hand
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from xlstm_cuda import functional

I, H = 5, 8
kinds = pytest.mark.parametrize("kind", ["sLSTM", "mLSTM"])
stacks = pytest.mark.parametrize(
    "stack",
    [{}, {"num_layers": 3}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}],
    ids=["1 layer", "3 layers", "bidirectional", "2 layers bidirectional"],
)
LENGTHS = (3, 7, 1, 7, 2)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(got: Any, true: Any, tolerance: float = 1e-9) -> None:
    if isinstance(true, Tensor):
        torch.testing.assert_close(got, true, atol=tolerance, rtol=tolerance)
        return
    assert len(got) == len(true)
    for a, b in zip(got, true):
        close(a, b, tolerance)


def loss_of(output: Tensor, state: Any) -> Tensor:
    """Random weights on the output and on the state, m excepted (it has no gradient); the same for equal shapes."""
    generator = torch.Generator().manual_seed(7)
    parts = [output, *state[:-1]]
    return sum((p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() for p in parts)


def gradients(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors, materialize_grads=True)


def batch_by_hand(layer: nn.Module, sequences: list[Tensor], state: Any) -> tuple[list[Tensor], Any]:
    """One sequence after the other; the states of the batch as the layer returns them."""
    results = [
        by_hand.one_sequence(layer, x, None if state is None else [part[:, b] for part in state]) for b, x in enumerate(sequences)
    ]
    return [y for y, _ in results], layer.state_type(*(torch.stack(p, 1) for p in zip(*(s for _, s in results))))


# ---- equations


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@stacks
@kinds
def test_forward_equals_the_loops_by_hand(kind, stack, with_state):
    layer = by_hand.make(kind, I, H, **stack)
    x = normal(6, 3, I).requires_grad_()
    state = by_hand.random_state(layer, 3) if with_state else None
    output, last = layer(x, state)
    sequences, true_last = batch_by_hand(layer, list(x.unbind(1)), state)
    true = torch.stack(sequences, 1)
    close(output, true)
    close(last, true_last)
    leaves = [x, *layer.parameters(), *(state or ())]
    close(gradients(loss_of(output, last), *leaves), gradients(loss_of(true, true_last), *leaves), 1e-7)


OPTIONS = [
    ("sLSTM", {"bias": False}),
    ("sLSTM", {"forget_gate": "exp"}),
    ("sLSTM", {"num_heads": 1}),
    ("sLSTM", {"num_heads": 8}),
    ("mLSTM", {"bias": False}),
    ("mLSTM", {"igate": "sigmoid"}),
    ("mLSTM", {"igate": "sigmoid", "normalize": False}),
    ("mLSTM", {"qk_dim_factor": 0.5}),
    ("mLSTM", {"qk_dim_factor": 2.0, "num_heads": 2}),
]


@pytest.mark.parametrize("kind,options", OPTIONS, ids=str)
def test_options_reach_the_cell(kind, options):
    layer = by_hand.make(kind, I, H, 2, **options)
    x = normal(5, I)
    true, true_last = by_hand.one_sequence(layer, x, None)
    output, last = layer(x)
    close((output, *last), (true, *true_last))
    for grad in (True, False):  # without gradients, a step takes a shorter way
        with torch.set_grad_enabled(grad):
            state = None
            for token, expected in zip(x, true):
                output, state = layer.step(token, state)
                close(output, expected)
            close(state, true_last)


@pytest.mark.parametrize("kind,options", [("sLSTM", {}), ("mLSTM", {"qk_dim_factor": 0.5})], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
def test_gradcheck(kind, options, bidirectional):
    layer = by_hand.make(kind, 2, 4, num_heads=2, bidirectional=bidirectional, **options)
    names, parameters = zip(*layer.named_parameters())
    x, state = normal(3, 2, 2).requires_grad_(), by_hand.random_state(layer, 2)

    def output(x: Tensor, *rest: Tensor) -> Tensor:
        weights = dict(zip(names, rest[len(state) :]))
        return torch.func.functional_call(layer, weights, (x, layer.state_type(*rest[: len(state)])))[0]

    assert torch.autograd.gradcheck(output, (x, *state, *parameters), nondet_tol=0.0)


# ---- forms of input


@stacks
@kinds
def test_batch_first_and_unbatched_equal_steps_first(kind, stack):
    layer = by_hand.make(kind, I, H, **stack)
    x, state = normal(6, 3, I), by_hand.random_state(layer, 3)
    output, last = layer(x, state)
    layer.batch_first = True
    got, got_last = layer(x.transpose(0, 1), state)
    close((got.transpose(0, 1), *got_last), (output, *last))
    for b in range(3):  # batch_first means nothing without a batch, as in nn.LSTM
        got, got_last = layer(x[:, b], tuple(part[:, b] for part in state))
        close((got, *got_last), (output[:, b], *(part[:, b] for part in last)))


@pytest.mark.parametrize("how", ["sorted", "not sorted", "padded, batch first"])
@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@stacks
@kinds
def test_packed_sequences_equal_each_sequence_alone(kind, stack, with_state, how):
    """Final states at each sequence's own end (the reverse direction: from its own end), in the order of the batch."""
    layer = by_hand.make(kind, I, H, batch_first="batch first" in how, **stack)
    lengths = sorted(LENGTHS, reverse=True) if how == "sorted" else LENGTHS
    sequences = [normal(n, I).requires_grad_() for n in lengths]
    state = by_hand.random_state(layer, len(lengths)) if with_state else None
    if "padded" in how:
        padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=float("nan"))
        packed = pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    else:
        packed = pack_sequence(sequences, enforce_sorted=how == "sorted")

    output, last = layer(packed, state)
    assert isinstance(output, PackedSequence)
    assert output.batch_sizes is packed.batch_sizes
    assert output.sorted_indices is packed.sorted_indices and output.unsorted_indices is packed.unsorted_indices
    unpacked, got_lengths = pad_packed_sequence(output, batch_first=True)
    assert got_lengths.tolist() == list(lengths)
    got = torch.cat([y[:n] for y, n in zip(unpacked, lengths)])

    true, true_last = batch_by_hand(layer, sequences, state)
    close(got, torch.cat(true))
    close(last, true_last)
    leaves = [*sequences, *layer.parameters(), *(state or ())]
    close(gradients(loss_of(got, last), *leaves), gradients(loss_of(torch.cat(true), true_last), *leaves), 1e-7)


@kinds
def test_packed_sequences_run_no_padding(kind, monkeypatch):
    seen = []
    original = getattr(functional, kind.lower())

    def spy(x, *args, **kwargs):
        if kwargs.get("backend") is None:  # the layer's own calls
            seen.append((x.shape[:2], kwargs["cu_seqlens"].tolist()))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(functional, kind.lower(), spy)
    layer = by_hand.make(kind, I, H, 2, bidirectional=True)
    layer(pack_sequence([normal(n, I) for n in LENGTHS], enforce_sorted=False))
    assert len(seen) == 4
    for shape, borders in seen:
        assert shape == (1, sum(LENGTHS))
        assert borders[-1] == sum(LENGTHS) and len(borders) == len(LENGTHS) + 1


@kinds
def test_packed_pieces_hand_the_state_over(kind):
    layer = by_hand.make(kind, I, H, 2)
    sequences = [normal(n, I) for n in (5, 9, 7)]
    _, last = layer(pack_sequence(sequences, enforce_sorted=False))
    _, middle = layer(pack_sequence([s[:n] for s, n in zip(sequences, (4, 1, 3))], enforce_sorted=False))
    _, end = layer(pack_sequence([s[n:] for s, n in zip(sequences, (4, 1, 3))], enforce_sorted=False), middle)
    h = (last.h, end.h) if kind == "sLSTM" else (last.C * last.m.exp()[..., None, None], end.C * end.m.exp()[..., None, None])
    close(h[1], h[0])


# ---- state


@pytest.mark.parametrize("cuts", [(1,), (4,), (2, 5), (1, 2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
@kinds
def test_pieces_equal_the_whole_with_gradients(kind, layers, cuts):
    layer = by_hand.make(kind, I, H, layers)
    x, state = normal(7, 2, I).requires_grad_(), by_hand.random_state(layer, 2)
    whole, last = layer(x, state)
    outputs, handed = [], state
    for piece in x.tensor_split(cuts):
        output, handed = layer(piece, handed)
        outputs.append(output)
    pieces = torch.cat(outputs)
    close(pieces, whole)
    weight = normal(*whole.shape)
    leaves = [x, *layer.parameters(), *state]
    close(gradients((pieces * weight).sum(), *leaves), gradients((whole * weight).sum(), *leaves), 1e-7)
    # The state is compared by what it does next: m is a gauge.
    more = normal(3, 2, I)
    close(layer(more, handed)[0], layer(more, last)[0])


@pytest.mark.parametrize("batch", [(), (3,)], ids=["unbatched", "B3"])
@kinds
def test_step_equals_the_sequence(kind, batch):
    layer = by_hand.make(kind, I, H, 2)
    x = normal(6, *batch, I).requires_grad_()
    whole, last = layer(x)
    outputs, state = [], None
    for token in x:
        output, state = layer.step(token, state)
        assert output.shape == (*batch, H)
        outputs.append(output)
    steps = torch.stack(outputs)
    close(steps, whole)
    assert [s.shape for s in state] == [s.shape for s in last]
    weight = normal(*whole.shape)
    leaves = [x, *layer.parameters()]
    close(gradients((steps * weight).sum(), *leaves), gradients((whole * weight).sum(), *leaves), 1e-7)
    with torch.inference_mode():
        state = None
        for token, true in zip(x, whole):
            output, state = layer.step(token, state)
            close(output, true)


@kinds
def test_step_of_a_bidirectional_layer_raises(kind):
    with pytest.raises(RuntimeError, match=r"step.*bidirectional"):
        by_hand.make(kind, I, H, bidirectional=True).step(normal(2, I))


@kinds
def test_states_and_parameters_share_no_memory(kind):
    layer = by_hand.make(kind, I, H, 2, bidirectional=True)
    parameters = list(layer.parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    forwards = by_hand.make(kind, I, H)
    runs = [(layer, layer, normal(4, 2, I)), (forwards, forwards, normal(4, 2, I)), (forwards, forwards, normal(0, 2, I))]
    with torch.no_grad():
        for owner, run, x in [*runs, (forwards, forwards.step, normal(2, I))]:
            state = by_hand.random_state(owner, 2)
            before = [part.clone() for part in state]
            output, last = run(x, state)
            for part in (output, *last):
                part.fill_(torch.nan)
            close(list(state), before)
            assert all(parameter.isfinite().all() for parameter in owner.parameters())


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=["S0", "B0", "S0 B0"])
@stacks
@kinds
def test_no_steps_or_no_samples_give_empty_output_and_the_same_state(kind, stack, shape):
    layer = by_hand.make(kind, I, H, **stack)
    S, B = shape
    x, state = normal(S, B, I).requires_grad_(), by_hand.random_state(layer, B)
    output, last = layer(x, state)
    assert output.shape == (S, B, H * layer.num_directions)
    if S == 0:
        close(last, state)
    loss = output.sum() + sum(part.sum() for part in last[:-1])
    for parameter, gradient in zip(layer.parameters(), gradients(loss, *layer.parameters())):
        assert gradient.shape == parameter.shape and not gradient.any()
    output, fresh = layer(x)
    assert output.shape == (S, B, H * layer.num_directions) and not any(part.any() for part in fresh)


def test_an_empty_packed_sequence_passes():
    for kind in by_hand.KINDS:
        layer = by_hand.make(kind, I, H, 2, bidirectional=True)
        output, last = layer(PackedSequence(normal(0, I), torch.zeros(0, dtype=torch.int64)))
        assert output.data.shape == (0, 2 * H) and last[0].shape[:2] == (4, 0)


# ---- dropout


class Between(by_hand.KINDS["sLSTM"]):
    """Records what enters and leaves every cell."""

    def run_sequence(self, x, *others):
        h, last = super().run_sequence(x, *others)
        self.seen = [*getattr(self, "seen", []), (x, h)]
        return h, last


def test_dropout_acts_between_layers_in_training_only():
    layer = Between(I, 64, 3, dropout=0.25, dtype=torch.float64)
    x = normal(6, 4, I)
    output, _ = layer(x)
    (first_in, first_out), (second_in, second_out), (third_in, third_out) = layer.seen
    assert torch.equal(first_in, x.transpose(0, 1)), "the input is not dropped"
    for entering, left in ((second_in, first_out), (third_in, second_out)):
        kept = entering != 0
        close(entering[kept], left[kept] / 0.75)
        assert 0.7 < kept.double().mean() < 0.8
    assert torch.equal(output, third_out.transpose(0, 1)), "the last layer's output is not dropped"
    again, _ = layer(x)
    assert not torch.equal(again, output)

    layer.eval()
    plain = Between(I, 64, 3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x)[0], plain(x)[0])


@kinds
def test_step_drops_between_layers_in_training(kind):
    layer = by_hand.make(kind, I, H, 2, dropout=1.0)
    x = normal(2, I)
    output, _ = layer.step(x)
    close(output, layer(x.unsqueeze(0))[0][0])
    layer.eval()
    assert not torch.equal(output, layer.step(x)[0])


@kinds
def test_dropout_with_one_layer_warns(kind):
    with pytest.warns(UserWarning, match=r"dropout=0\.5 and num_layers=1") as caught:
        by_hand.KINDS[kind](I, H, dropout=0.5)
    assert caught[0].filename == __file__, "the warning points at the line that makes the layer"
