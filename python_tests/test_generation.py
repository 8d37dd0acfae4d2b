"""`xlstm_cuda.generation`: a row is its prompt generated alone, whatever lies beside it, wherever it stops, on any device."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from torch import nn

from xlstm_cuda import (
    backends,
    generation,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    states,
    xLSTMLarge,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm_cuda.generation import Sampler, StepGraphs, generate, stream

V = 50
KINDS = ("lm", "large")


def make(kind: str, dropout: float = 0.0):
    torch.manual_seed(0)
    if kind == "large":
        return xLSTMLarge(xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=V)).double().eval()
    config = xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(mLSTMLayerConfig(num_heads=2)), slstm_block=sLSTMBlockConfig(sLSTMLayerConfig(num_heads=2)),
        num_blocks=3, slstm_at=[1], embedding_dim=32, vocab_size=V, dropout=dropout,
    )  # fmt: skip
    return xLSTMLMModel(config).double().eval()


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return make(request.param)


def prompts_of(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, V, (length,), generator=generator) for length in lengths]


def copy(state):
    return states.select(state, range(states.rows(state)))


def assert_states(got, expected, **tolerance) -> None:
    for (a, _), (b, _) in zip(states.tensors(got), states.tensors(expected), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def equal(got, expected) -> bool:
    return len(got) == len(expected) and all(torch.equal(a, b) for a, b in zip(got, expected))


LIMITS = [
    dict(temperature=0),
    dict(),
    dict(temperature=0.7, top_k=20),
    dict(temperature=1.3, top_p=0.9),
    dict(top_k=9, top_p=0.5),
]
EOS = list(range(5))


# ---------------------------------------------------------------- a row is a row


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("eos", [None, EOS], ids=["all lengths equal", "rows stop"])
def test_each_row_is_the_prompt_generated_alone(model, limits, eos):
    prompts = prompts_of(3, 17, 1, 70, 64)
    new, state = generate(model, prompts, max_new_tokens=30, seed=7, eos=eos, **limits)
    lengths = [len(row) for row in new]
    if eos and limits.get("temperature") != 0:
        assert len(set(lengths)) > 2, lengths  # so that rows are selected more than once
    for row, prompt in enumerate(prompts):
        (alone,), its_state = generate(model, [prompt], max_new_tokens=30, seed=7 + row, eos=eos, **limits)
        assert torch.equal(alone, new[row])
        assert_states(states.select(state, [row]), its_state)


def test_a_row_that_stopped_has_the_state_of_the_whole_sequence_but_its_last_token(model):
    prompts = prompts_of(5, 2, 33)
    new, state = generate(model, prompts, max_new_tokens=25, seed=1, eos=EOS)
    for row, (prompt, written) in enumerate(zip(prompts, new)):
        read = torch.cat([prompt, written[:-1]]).unsqueeze(0)
        assert_states(states.select(state, [row]), model(read, None, True)[1], atol=1e-9, rtol=1e-7)
        assert not set(written[:-1].tolist()) & set(EOS)
        assert len(written) == 25 or int(written[-1]) in EOS


def test_greedy_tokens_are_those_of_the_parallel_forward(model):
    (prompt,) = prompts_of(12)
    (new,), _ = generate(model, [prompt], max_new_tokens=9, temperature=0)
    logits = model(torch.cat([prompt, new]).unsqueeze(0))
    assert torch.equal(logits[0, len(prompt) - 1 : -1].argmax(-1), new)


def test_a_tensor_of_prompts_is_a_list_of_its_rows(model):
    prompts = torch.stack(prompts_of(6, 6, 6))
    expected = generate(model, list(prompts), max_new_tokens=5, seed=0)[0]
    assert equal(generate(model, prompts, max_new_tokens=5, seed=0)[0], expected)
    assert equal(generate(model, prompts.int(), max_new_tokens=5, seed=0)[0], expected)
    assert all(row.dtype == torch.int64 and row.shape == (5,) for row in expected)


def test_large_generate_is_the_greedy_one():
    model, tokens = make("large"), torch.stack(prompts_of(9, 9))
    theirs, their_state = model.generate(tokens, 11)
    new, state = generate(model, tokens, max_new_tokens=11, temperature=0)
    assert torch.equal(theirs, torch.stack(new))
    assert_states(state, their_state)


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_backend(kind, backend):
    model = make(kind).float()
    device = "cuda" if backend == "cuda" else "cpu"
    prompts = [prompt.to(device) for prompt in prompts_of(4, 19, 1)]
    got = generate(model.to(device), prompts, max_new_tokens=4, temperature=0, backend=backend)[0]
    expected = generate(make(kind), prompts_of(4, 19, 1), max_new_tokens=4, temperature=0, backend="reference")[0]
    assert equal([row.cpu() for row in got], expected)


# ---------------------------------------------------------------- what is not computed


def test_a_row_that_met_eos_is_stepped_no_more(model, monkeypatch):
    widths = []
    real = model.step
    monkeypatch.setattr(model, "step", lambda x, *args, **options: widths.append(len(x)) or real(x, *args, **options))
    new, _ = generate(model, prompts_of(3, 17, 1, 70, 64), max_new_tokens=30, seed=7, eos=EOS)
    lengths = [len(row) for row in new]
    assert widths == [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert widths[-1] < widths[0]


def test_prompts_are_read_in_one_packed_pass_with_one_row_of_logits_each(model, monkeypatch):
    calls = []
    real = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args, **options: calls.append((args, options, real(*args, **options))) or calls[-1][2]
    )
    generate(model, prompts_of(5, 0 + 1, 30), max_new_tokens=1, temperature=0)
    ((tokens, state, _), options, (logits, _)) = calls[0][0], calls[0][1], calls[0][2]
    assert len(calls) == 1 and tokens.shape == (1, 36) and state is None
    assert options["cu_seqlens"].tolist() == [0, 5, 6, 36] and logits.shape == (1, 3, V)


@pytest.mark.parametrize("piece", [1, 7, 16, 64])
def test_a_pack_in_pieces_reads_as_in_one_pass(model, monkeypatch, piece):
    prompts = prompts_of(3, 40, 1, 21)
    expected, whole = generate(model, prompts, max_new_tokens=6, seed=0)
    monkeypatch.setitem(generation.PIECE, "cpu", piece)
    got, state = generate(model, prompts, max_new_tokens=6, seed=0)
    assert equal(got, expected)
    assert_states(state, whole, atol=1e-9, rtol=1e-7)


def test_the_stream_computes_what_is_asked_for(model, monkeypatch):
    prompts = prompts_of(4, 9)
    run = stream(model, prompts, max_new_tokens=10**12, seed=2)
    taken = list(itertools.islice(run, 8))
    assert [row for row, _ in taken] == [0, 1] * 4
    new, _ = generate(model, prompts, max_new_tokens=4, seed=2)
    assert [token for row, token in taken if row == 1] == new[1].tolist()


def test_no_gradients_are_recorded(model):
    _, state = generate(model, prompts_of(4, 2), max_new_tokens=3)
    for part, _ in states.tensors(state):
        assert not part.requires_grad and not part.is_inference()


# ---------------------------------------------------------------- states


def test_a_call_goes_on_from_the_state_of_the_one_before(model):
    prompts = prompts_of(3, 17, 5)
    whole, end = generate(model, prompts, max_new_tokens=12, temperature=0)
    first, state = generate(model, prompts, max_new_tokens=5, temperature=0)
    rest, last = generate(model, [row[-1:] for row in first], max_new_tokens=7, temperature=0, state=state)
    assert equal([torch.cat(parts) for parts in zip(first, rest)], whole)
    assert_states(last, end, atol=1e-9, rtol=1e-7)


def test_one_prefix_for_many_rows(model):
    (prefix,) = prompts_of(30)
    tails = prompts_of(2, 9, 4)
    none, state = generate(model, [prefix], max_new_tokens=0)
    assert [row.shape for row in none] == [(0,)]
    new, _ = generate(model, tails, max_new_tokens=6, seed=0, state=states.expand(state, 3))
    assert equal(new, generate(model, [torch.cat([prefix, tail]) for tail in tails], max_new_tokens=6, seed=0)[0])


def test_rows_of_a_state_are_selected_between_calls(model):
    first, state = generate(model, prompts_of(3, 17, 5), max_new_tokens=5, temperature=0)
    order = [2, 0, 2]
    last = [first[row][-1:] for row in order]
    new, _ = generate(model, last, max_new_tokens=4, temperature=0, state=states.select(state, order))
    assert equal(new[:1], new[2:])
    alone, _ = generate(model, last[1:2], max_new_tokens=4, temperature=0, state=states.select(state, [0]))
    assert torch.equal(new[1], alone[0])


def test_the_given_state_is_left_as_it_is(model):
    first, state = generate(model, prompts_of(3, 1, 5), max_new_tokens=5, temperature=0)
    before = copy(state)
    generate(model, [row[-1:] for row in first], max_new_tokens=9, seed=0, eos=EOS, state=state)
    generate(model, [row[-1:] for row in first], max_new_tokens=0, state=state)
    assert_states(state, before, atol=0, rtol=0)


def test_states_are_joined_and_counted(model):
    _, state = generate(model, prompts_of(3, 1, 5), max_new_tokens=1)
    assert states.rows(state) == 3 and states.rows(None) is None
    parts = [states.select(state, rows) for rows in ([0], [], [1, 2])]
    assert_states(states.join(parts), state, atol=0, rtol=0)
    with pytest.raises(ValueError, match="state: got tensors of 2 and of 3 rows"):
        states.rows((state, states.select(state, [0, 1])))


# ---------------------------------------------------------------- the ends


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_no_new_tokens_is_the_state_after_the_prompts(model, state):
    before = generate(model, prompts_of(4, 4), max_new_tokens=1)[1] if state else None
    new, after = generate(model, prompts_of(3, 8), max_new_tokens=0, state=before)
    assert [row.tolist() for row in new] == [[], []]
    for row, prompt in enumerate(prompts_of(3, 8)):
        alone = None if before is None else states.select(before, [row])
        assert_states(states.select(after, [row]), model(prompt.unsqueeze(0), alone, True)[1], atol=1e-9, rtol=1e-7)


def test_empty_prompts_pass_a_state_through(model):
    _, state = generate(model, prompts_of(3, 1), max_new_tokens=1)
    new, after = generate(model, prompts_of(0, 0), max_new_tokens=0, state=state)
    assert [row.tolist() for row in new] == [[], []] and after is state
    new, after = generate(model, prompts_of(0, 7), max_new_tokens=0, state=state)
    assert_states(states.select(after, [0]), states.select(state, [0]), atol=0, rtol=0)


@pytest.mark.parametrize("prompts", [[], torch.zeros(0, 5, dtype=torch.int64)], ids=["list", "tensor"])
def test_no_prompts_are_no_rows(model, prompts):
    assert generate(model, prompts, max_new_tokens=5, seed=0) == ([], None)
    assert generate(model, prompts, max_new_tokens=5, seed=[]) == ([], None)
    assert list(stream(model, prompts, max_new_tokens=5)) == []


def test_the_stop_token_ends_its_row(model):
    prompts = prompts_of(3, 8)
    free, _ = generate(model, prompts, max_new_tokens=20, seed=5)
    stop = int(free[1][4])
    place = free[1].tolist().index(stop)
    stopped, _ = generate(model, prompts, max_new_tokens=20, seed=5, eos=stop)
    assert torch.equal(stopped[1], free[1][: place + 1])
    for eos in ([stop], {stop}, (stop, stop), iter([stop]), range(stop, stop + 1)):
        assert equal(generate(model, prompts, max_new_tokens=20, seed=5, eos=eos)[0], stopped)


def test_the_callback_sees_every_token_in_order(model):
    seen = []
    new, _ = generate(
        model, prompts_of(3, 17, 1), max_new_tokens=12, seed=7, eos=EOS, on_token=lambda row, token: seen.append((row, token))
    )  # fmt: skip
    for row, tokens in enumerate(new):
        assert [token for of, token in seen if of == row] == tokens.tolist()
    assert all(type(row) is int and type(token) is int for row, token in seen)
    in_steps = sorted((step, row) for row, tokens in enumerate(new) for step in range(len(tokens)))
    assert [row for row, _ in seen] == [row for _, row in in_steps]


def test_an_error_in_the_callback_ends_the_call(model):
    def leave(row: int, token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts_of(3), max_new_tokens=5, on_token=leave)


# ---------------------------------------------------------------- random numbers


def test_seeds(model):
    prompts = [prompts_of(6)[0]] * 3
    new, _ = generate(model, prompts, max_new_tokens=70, seed=4)
    assert not torch.equal(new[0], new[1]) and not torch.equal(new[1], new[2])
    assert equal(generate(model, prompts, max_new_tokens=70, seed=[4, 5, 6])[0], new)
    assert equal(generate(model, prompts, max_new_tokens=70, seed=(6, 6, 4))[0], [new[2], new[2], new[0]])
    assert equal(generate(model, prompts, max_new_tokens=40, seed=4)[0], [row[:40] for row in new])
    largest = 2**63 - 1
    assert equal(
        generate(model, prompts[:1], max_new_tokens=2, seed=largest - 1)[0],
        generate(model, prompts[:1], max_new_tokens=2, seed=[largest - 1])[0],
    )


def test_without_a_seed_the_default_generator_decides(model):
    prompts = prompts_of(6, 2)
    torch.manual_seed(11)
    first, second = (generate(model, prompts, max_new_tokens=30)[0] for _ in range(2))
    assert not torch.equal(first[0], second[0])
    torch.manual_seed(11)
    assert equal(generate(model, prompts, max_new_tokens=30)[0], first)
    before = torch.get_rng_state()
    generate(model, prompts, max_new_tokens=3, temperature=0)
    generate(model, prompts, max_new_tokens=3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_default_device_is_not_asked(model):
    expected = generate(model, prompts_of(6, 2), max_new_tokens=3, seed=0, eos=EOS)[0]
    prompts = prompts_of(6, 2)
    with torch.device("meta"):
        assert equal(generate(model, prompts, max_new_tokens=3, seed=0, eos=EOS)[0], expected)


def pick(logits, seed: int = 0, count: int = 1, **limits) -> torch.Tensor:
    logits = torch.as_tensor(logits)
    draws = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Sampler(**limits).pick(logits.expand(count, -1), draws)


def test_sampler_temperature_zero_takes_the_likeliest():
    assert Sampler(temperature=0).pick(torch.tensor([[0.0, 3.0, 1.0], [4.0, 3.0, 4.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sampler_follows_the_distribution(dtype):
    logits = torch.tensor([0.1, 0.2, 0.7]).log().to(dtype)
    counts = torch.bincount(pick(logits, count=20_000), minlength=3)
    torch.testing.assert_close(counts / 20_000, logits.float().softmax(0), atol=0.012, rtol=0)
    sharper = torch.bincount(pick(logits, count=20_000, temperature=0.5), minlength=3)
    torch.testing.assert_close(sharper / 20_000, (2 * logits.float()).softmax(0), atol=0.012, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 1.0}], ids=str)
def test_sampler_cuts_the_draws_where_the_distribution_says(limits, temperature):
    """The likelier token comes first where a limit sorts, the first one otherwise; its share of the draws is its probability."""
    share = torch.tensor([0.7, 0.3], dtype=torch.float64).log().div(temperature).softmax(0)[0]
    draws = torch.stack((share - 1e-6, share + 1e-6))
    logits = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log().expand(2, -1)
    assert Sampler(temperature=temperature, **limits).pick(logits, draws).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"top_k": 2}, {1, 3}), ({"top_k": 4}, {0, 1, 2, 3}), ({"top_k": 99}, {0, 1, 2, 3}), ({"top_p": 0.55}, {1, 3}),
        ({"top_p": 0.5}, {1}), ({"top_p": 1.0}, {0, 1, 2, 3}), ({"top_p": 1e-300}, {1}), ({"top_k": 3, "top_p": 0.95}, {1, 2, 3}),
    ],
    ids=str,
)  # fmt: skip
def test_sampler_keeps_to_its_limits(limits, kept):
    assert set(pick(torch.tensor([0.1, 0.5, 0.15, 0.25]).log(), count=2000, **limits).tolist()) == kept


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_every_temperature_has_a_distribution(temperature):
    picked = set(pick([0.0, 3.0, 1.0], count=200, temperature=temperature).tolist())
    assert picked == ({1} if temperature < 1 else {0, 1, 2})


@pytest.mark.parametrize("draw", [0.0, 5e-324, 0.5, 1 - 2**-53], ids=str)
def test_no_draw_finds_a_token_without_probability(draw):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert int(Sampler().pick(logits, torch.tensor([draw], dtype=torch.float64))) == (1 if draw < 0.5 else 3)
    limited = Sampler(top_p=0.9).pick(logits, torch.tensor([draw], dtype=torch.float64))
    assert int(limited) == (1 if draw < 0.5 else 3)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_without_a_distribution_are_an_error_with_row_and_step(bad, temperature):
    model = make("lm")
    new, _ = generate(model, prompts_of(2, 3), max_new_tokens=4, seed=0, temperature=temperature)
    poison, place = int(new[1][1]), new[1].tolist().index(int(new[1][1]))
    if poison in new[0].tolist() or any(poison in prompt.tolist() for prompt in prompts_of(2, 3)):
        pytest.skip("the token is not row 1's alone")
    with torch.no_grad():
        model.token_embedding.weight[poison] = torch.nan
        if bad == torch.inf:
            model.token_embedding.weight[poison] = torch.inf
    with pytest.raises(generation.LogitsError, match=f"for row 1 at new token {place + 1}, expected numbers"):
        generate(model, prompts_of(2, 3), max_new_tokens=4, seed=0, temperature=temperature)


# ---------------------------------------------------------------- bad arguments

P = torch.tensor([1, 2, 3])
BAD = {
    "model": (dict(model=nn.Linear(2, 2)), TypeError, "model: got Linear, expected an xLSTMLMModel or an xLSTMLarge"),
    "text": (dict(prompts="abc"), TypeError, r"prompts: got str, expected a tensor \(B, S\) or a list"),
    "number": (dict(prompts=3), TypeError, "prompts: got int"),
    "no tensors": (dict(prompts=[[1, 2]]), TypeError, r"prompts\[0\]: got list, expected a torch.Tensor"),
    "floats": (dict(prompts=P.float()[None]), TypeError, "prompts: got dtype float32, expected int64 or int32"),
    "floats in a list": (dict(prompts=[P, P.float()]), TypeError, r"prompts\[1\]: got dtype float32, expected int64"),
    "one axis": (dict(prompts=P), ValueError, r"prompts: got shape \(3,\), expected \(B, S\)"),
    "two axes in a list": (dict(prompts=[P, P[None]]), ValueError, r"prompts\[1\]: got shape \(1, 3\), expected \(S\)"),
    "another device": (dict(prompts=[P.to("meta")]), ValueError, r"prompts\[0\]: got a tensor on meta, expected cpu"),
    "empty prompt": (dict(prompts=[P, P[:0]]), ValueError, r"prompts\[1\]: got no token, expected at least one"),
    "empty axis": (dict(prompts=torch.zeros(2, 0, dtype=torch.int64)), ValueError, r"prompts\[0\]: got no token"),
    "large token": (dict(prompts=[P, P + 47]), ValueError, r"prompts\[1\]: got token 50, expected 0 to 49"),
    "negative token": (dict(prompts=[P - 2]), ValueError, r"prompts\[0\]: got token -1, expected 0 to 49"),
    "length": (dict(max_new_tokens=-1), ValueError, "max_new_tokens: got -1, expected at least 0"),
    "length of another type": (dict(max_new_tokens=2.0), TypeError, "max_new_tokens: got float, expected int"),
    "temperature": (dict(temperature=-0.1), ValueError, "temperature: got -0.1, expected a finite number of at least 0"),
    "nan": (dict(temperature=float("nan")), ValueError, "temperature: got nan"),
    "infinity": (dict(temperature=float("inf")), ValueError, "temperature: got inf"),
    "temperature of another type": (dict(temperature="1"), TypeError, "temperature: got str, expected a number"),
    "top_k": (dict(top_k=0), ValueError, "top_k: got 0, expected at least 1"),
    "top_k of another type": (dict(top_k=True), TypeError, "top_k: got bool, expected int"),
    "top_p": (dict(top_p=1.5), ValueError, "top_p: got 1.5, expected a number above 0 and at most 1"),
    "top_p zero": (dict(top_p=0), ValueError, "top_p: got 0"),
    "eos": (dict(eos=50), ValueError, "eos: got 50, expected 0 to 49"),
    "eos of another type": (dict(eos="ab"), TypeError, "eos: got str, expected int"),
    "eos in a list": (dict(eos=[1, None]), TypeError, "eos: got NoneType, expected int"),
    "seed": (dict(seed=-1), ValueError, "seed: got -1, expected 0 to"),
    "seed of another type": (dict(seed=1.0), TypeError, "seed: got float, expected int"),
    "seeds": (dict(seed=[1, 2]), ValueError, "seed: got 2 seeds, expected 1, one for each prompt"),
    "one of the seeds": (dict(seed=["1"]), TypeError, r"seed\[0\]: got str, expected int"),
    "callback": (dict(on_token=3), TypeError, r"on_token: got int, expected a function of \(row, token\)"),
    "backend": (dict(backend="gpu"), ValueError, "backend: got 'gpu'"),
    "state": (dict(state=3), TypeError, "state: got int, expected a state"),
    "graphs": (dict(graphs=3), TypeError, "graphs: got int, expected StepGraphs"),
    "graphs on a CPU": (dict(graphs=True), ValueError, "model: got one on cpu, expected one on a GPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(model, case):
    options, error, message = BAD[case]
    call = {"model": model, "prompts": P[None], "max_new_tokens": 2, **options}
    with pytest.raises(error, match=message):
        generate(call.pop("model"), call.pop("prompts"), **call)
    if "on_token" not in options and case != "backend":
        call = {"model": model, "prompts": P[None], "max_new_tokens": 2, **options}
        with pytest.raises(error, match=message):  # before anything is asked of the stream
            stream(call.pop("model"), call.pop("prompts"), **call)


def test_states_that_do_not_fit(model):
    _, state = generate(model, prompts_of(3, 3), max_new_tokens=1)
    with pytest.raises(ValueError, match="state: got 2 rows, expected 3, one for each prompt"):
        generate(model, prompts_of(3, 3, 3), max_new_tokens=1, state=state)
    with pytest.raises(ValueError, match="state: got a tensor on meta, expected cpu"):
        generate(model, prompts_of(3, 3), max_new_tokens=1, state=states.to(state, "meta"))
    other = make("lm" if isinstance(model, xLSTMLarge) else "large")
    with pytest.raises(ValueError, match="state: got"):
        generate(other, prompts_of(3, 3), max_new_tokens=1, state=state)


def test_active_dropout_is_refused_and_training_mode_without_it_is_not():
    model = make("lm", dropout=0.1).train()
    with pytest.raises(ValueError, match=r"model: got xlstm_block_stack.blocks.0.xlstm.dropout with active dropout \(0.1\)"):
        generate(model, prompts_of(3), max_new_tokens=1)
    expected = generate(model.eval(), prompts_of(3), max_new_tokens=5, seed=0)[0]
    assert equal(generate(make("lm").train(), prompts_of(3), max_new_tokens=5, seed=0)[0], expected)


def test_logits_to_keep_are_those_of_the_steps(model):
    tokens = torch.stack(prompts_of(9, 9))
    steps = torch.tensor([8, 0])
    torch.testing.assert_close(model(tokens, logits_to_keep=steps), model(tokens)[:, [8, 0]])
    assert model(tokens, None, True, logits_to_keep=steps[:0])[0].shape == (2, 0, V)
    with pytest.raises(TypeError, match="logits_to_keep: got dtype float64, expected int64 or int32"):
        model(tokens, logits_to_keep=steps.double())
    with pytest.raises(ValueError, match=r"logits_to_keep: got shape \(1, 2\), expected \(K\)"):
        model(tokens, logits_to_keep=steps[None])
    with pytest.raises(ValueError, match="logits_to_keep: got a tensor on meta"):
        model(tokens, logits_to_keep=steps.to("meta"))


# ---------------------------------------------------------------- CUDA graphs, on a GPU that the host executor plays


@contextlib.contextmanager
def a_gpu():
    """A GPU, true or played: the structure of what is captured is the same on both."""
    if torch.cuda.is_available():
        yield
        return
    if not backends()["simt"]:
        pytest.skip(backends()["simt"].reason)
    import played_gpu

    with played_gpu.played(played_gpu.GPUS["H100"]), played_gpu.modes():
        yield


@pytest.fixture
def gpu():
    with a_gpu():
        yield


def counted(monkeypatch) -> list[str]:
    """Captures and replays as they happen."""
    events = []
    capture, replay = torch.cuda.graph, torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: events.append("capture") or capture(*args, **options))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: events.append("replay") or replay(self))
    return events


def on_gpu(kind: str):
    return make(kind).float().cuda(), [prompt.cuda() for prompt in prompts_of(3, 9, 1, 5, 2)]


@pytest.mark.parametrize("limits", [dict(temperature=0), dict(seed=3, top_p=0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_the_tokens_and_states_of_steps_without(gpu, monkeypatch, kind, limits):
    model, prompts = on_gpu(kind)
    options = dict(max_new_tokens=9, eos=[*EOS, 7, 8, 9, 20, 30, 40], **limits)
    expected, end = generate(model, prompts, graphs=False, **options)
    events = counted(monkeypatch)
    got, state = generate(model, prompts, **options)
    assert equal([row.cpu() for row in got], [row.cpu() for row in expected])
    assert_states(states.to(state, "cpu"), states.to(end, "cpu"))
    lengths = [len(row) for row in got]
    alive = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert events.count("replay") == len(alive)
    assert events.count("capture") == len({(count - 1).bit_length() for count in alive})


def test_kept_graphs_are_captured_once_and_follow_the_weights(gpu, monkeypatch):
    model, prompts = on_gpu("lm")
    graphs = StepGraphs(model)
    events = counted(monkeypatch)
    options = dict(max_new_tokens=4, seed=1)
    first = generate(model, prompts[:3], graphs=graphs, **options)[0]
    again, _ = generate(model, prompts[:4], graphs=graphs, **options)
    assert events.count("capture") == 1 and events.count("replay") == 6
    assert equal([row.cpu() for row in again[:3]], [row.cpu() for row in first])
    generate(model, prompts[:3], graphs=graphs, **{**options, "temperature": 0})
    assert events.count("capture") == 2  # another way of sampling
    with torch.no_grad():
        model.lm_head.weight.neg_()
    changed, _ = generate(model, prompts[:3], graphs=graphs, **options)
    assert events.count("capture") == 2
    assert equal([row.cpu() for row in changed], [row.cpu() for row in generate(model, prompts[:3], graphs=False, **options)[0]])
    model.lm_head.weight = nn.Parameter(-model.lm_head.weight.detach())
    moved, _ = generate(model, prompts[:3], graphs=graphs, **options)
    assert events.count("capture") == 3
    assert equal([row.cpu() for row in moved], [row.cpu() for row in first])
    with pytest.raises(ValueError, match="graphs: got those of another model"):
        generate(make("lm").float().cuda(), prompts, graphs=graphs, **options)


def test_a_returned_state_is_not_touched_by_later_replays(gpu):
    model, prompts = on_gpu("large")
    graphs = StepGraphs(model)
    new, state = generate(model, prompts, max_new_tokens=5, temperature=0, graphs=graphs)
    before = copy(states.to(state, "cpu"))
    generate(model, [row[-1:] for row in new], max_new_tokens=5, temperature=0, graphs=graphs, state=state)
    assert_states(states.to(state, "cpu"), before, atol=0, rtol=0)


def test_a_step_that_cannot_be_captured_says_so(gpu):
    model, prompts = on_gpu("large")
    model.backbone.out_norm.register_forward_hook(lambda *_: float(_[2].sum()) and None)
    with pytest.raises(RuntimeError, match=r"step cannot be captured as a CUDA graph; graphs=False steps without \("):
        generate(model, prompts, max_new_tokens=3)
    generate(model, prompts, max_new_tokens=3, graphs=False)
