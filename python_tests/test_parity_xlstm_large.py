"""xLSTMLarge against the PyPI package `xlstm` on its native kernels, and what only ours can do."""

import copy
import dataclasses
import pickle

import pytest
import torch

import xlstm_cuda as ours

official = pytest.importorskip("xlstm.xlstm_large", reason="the PyPI package xlstm is the oracle (pip install '.[peers]')")

TOLERANCE = 2e-5
BASE = dict(embedding_dim=64, num_heads=4, num_blocks=2, vocab_size=50)
NATIVE = dict(
    chunkwise_kernel="chunkwise--native_autograd",
    sequence_kernel="native_sequence__native",
    step_kernel="native",
    mode="inference",
    return_last_states=True,
)
CONFIGS = {
    "default": {},
    "fused": dict(weight_mode="fused"),
    "bias": dict(use_bias=True),
    "bias, fused": dict(use_bias=True, weight_mode="fused"),
    "no out norm": dict(add_out_norm=False),
    "tight soft caps": dict(gate_soft_cap=1.5, output_logit_soft_cap=0.7),
    "no soft caps": dict(gate_soft_cap=None, output_logit_soft_cap=None),
    "other widths": dict(qk_dim_factor=0.25, v_dim_factor=2.0, num_heads=2, ffn_proj_factor=1.3, ffn_round_up_to_multiple_of=8),
    "narrow norms": dict(norm_reduction_force_float32=False, norm_eps=1e-3, eps=1e-3),
}
every_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())


def pair(**options):
    """An official and our model with the same weights, every parameter away from its init.

    Not too far: with noise of 0.2 the official float32 logits are themselves 2e-4 from those in float64.
    """
    theirs = official.xLSTMLarge(official.xLSTMLargeConfig(**(BASE | NATIVE | options))).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    mine = ours.xLSTMLarge(ours.xLSTMLargeConfig(**(BASE | NATIVE | options))).eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def close(mine, theirs):
    return all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4) for i in theirs for a, b in zip(mine[i], theirs[i])
    )


@every_config
def test_official_weights_give_official_logits_and_states(options):
    theirs, mine = pair(**options)
    assert [(k, v.shape) for k, v in mine.state_dict().items()] == [(k, v.shape) for k, v in theirs.state_dict().items()]
    idx = torch.randint(0, 50, (2, 70))
    with torch.no_grad():
        (expected, their_state), (actual, my_state) = theirs(idx), mine(idx)
        assert (actual - expected).abs().max() <= TOLERANCE
        assert close(my_state, their_state)
        for t in range(3):  # our model continues on the official state, theirs on ours
            expected, their_next = theirs(idx[:, t : t + 1], copy.deepcopy(my_state))
            actual, my_state = mine(idx[:, t : t + 1], their_state)
            their_state = their_next
            assert (actual - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("use_bias", [False, True], ids=["no bias", "bias"])
def test_weights_of_either_weight_mode_load_into_either(use_bias):
    single, fused = (
        ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, use_bias=use_bias, weight_mode=m)) for m in ("single", "fused")
    )
    idx = torch.randint(0, 50, (2, 9))
    given = single.state_dict()
    keys = [*given]
    fused.load_state_dict(given)
    assert [*given] == keys
    assert torch.allclose(fused(idx), single(idx), atol=1e-5)
    back = ours.xLSTMLarge(single.config)
    back.load_state_dict(fused.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), single.state_dict().values()))


def test_config_fields_and_defaults_are_the_official_ones():
    mine, theirs = (dataclasses.asdict(package.xLSTMLargeConfig(**BASE)) for package in (ours, official))
    assert [*mine.items()] == [*theirs.items()]


def test_gradients_equal_the_official_ones():
    theirs, mine = pair(mode="train", return_last_states=True)
    idx = torch.randint(0, 50, (2, 64))
    for model in (theirs, mine):
        model(idx)[0].square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        scale = float(expected[name].grad.abs().max())
        assert (p.grad - expected[name].grad).abs().max() <= 1e-3 * scale + 1e-7, name


def test_generate_equals_the_official_one():
    theirs, mine = pair()
    prefill = torch.randint(0, 50, (2, 5))
    (expected, their_state), (actual, my_state) = theirs.generate(prefill, 7), mine.generate(prefill, 7)
    assert torch.equal(actual, expected)
    assert close(my_state, their_state)
    assert mine.generate(prefill, 0) == (None, None)


@pytest.mark.parametrize("mode", ["train", "train_with_padding", "inference"])
def test_default_construction_trains_on_any_length(mode):
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, mode=mode)).train()
    for S in (1, 13, 65):
        model(torch.randint(0, 50, (2, S))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 50)


def test_prefill_then_steps_equal_the_whole_sequence_and_leave_states_alone():
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, return_last_states=True))
    idx = torch.randint(0, 50, (2, 12))
    whole, last = model(idx)
    y, state = model(idx[:, :7])
    outputs = [y]
    for t in range(7, 12):
        before = copy.deepcopy({i: tuple(s.detach() for s in part) for i, part in state.items()})
        given = state
        y, state = model(idx[:, t : t + 1], given)
        assert all(torch.equal(a, b) for i in before for a, b in zip(given[i], before[i]))
        outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1), whole, atol=1e-5)
    assert close(state, last)


def test_gradients_through_states_equal_those_of_the_whole_sequence():
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, return_last_states=True)).double()
    idx = torch.randint(0, 50, (2, 12))
    weight = torch.randn(2, 12, 50, dtype=torch.float64)
    gradients = []
    for pieces in ((12,), (5, 4, 1, 1, 1)):
        state, outputs = None, []
        for piece in idx.split(pieces, 1):
            y, state = model(piece, state)
            outputs.append(y)
        gradients.append(torch.autograd.grad((torch.cat(outputs, 1) * weight).sum(), [*model.parameters()]))
    for whole, in_pieces in zip(*gradients):
        assert torch.allclose(in_pieces, whole, atol=1e-8 * float(whole.abs().max()) + 1e-12)


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)], ids=str)
def test_model_in_half_precision_keeps_float32_states(dtype, tolerance):
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, return_last_states=True)).eval()
    idx = torch.randint(0, 50, (2, 70))
    with torch.no_grad():
        expected, _ = model(idx)
        y, state = model.to(dtype)(idx)
        token, _ = model(idx[:, -1:], model(idx[:, :-1])[1])
    assert y.dtype == token.dtype == dtype
    assert (y - expected).norm() <= tolerance * expected.norm()
    assert (token - y[:, -1:]).norm() <= tolerance * y[:, -1:].norm()
    assert all(part.dtype == torch.float32 for parts in state.values() for part in parts)


def test_deepcopy_pickle_and_meta_device():
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE))
    idx = torch.randint(0, 50, (2, 5))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(idx), model(idx))
    with torch.device("meta"):
        meta = ours.xLSTMLarge(ours.xLSTMLargeConfig(4096, 8, 32, 50304, ffn_proj_factor=2.667))
    assert sum(p.numel() for p in meta.parameters()) == 6_865_424_896
    small = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE))
    with torch.no_grad():
        for p in small.parameters():
            p.fill_(torch.nan)
    small.reset_parameters()
    assert all(p.isfinite().all() for p in small.parameters())


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(weight_mode="other"), "weight_mode: got 'other'"),
        (dict(mode="other"), "mode: got 'other'"),
        (dict(num_heads=3), "num_heads: got 3, expected a divisor of qk_dim, 32"),
        (dict(vocab_size=0), "vocab_size: got 0"),
    ],
    ids=str,
)
def test_impossible_configs_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ours.xLSTMLarge(ours.xLSTMLargeConfig(**(BASE | options)))


def test_wrong_inputs_and_states_raise():
    model = ours.xLSTMLarge(ours.xLSTMLargeConfig(**BASE, return_last_states=True))
    idx = torch.randint(0, 50, (2, 5))
    _, state = model(idx)
    with pytest.raises(TypeError, match="x: got dtype float32"):
        model(torch.randn(2, 5))
    with pytest.raises(ValueError, match="x: got shape"):
        model(idx[0])
    with pytest.raises(ValueError, match=r"state.C: got shape \(2, 4, 8, 16\)"):
        model(idx[:1], state)
    with pytest.raises(ValueError, match="state: got blocks"):
        model(idx, {2: state[0]})
    with pytest.raises(TypeError, match="state: got list"):
        model(idx, [state])
    with pytest.raises(ValueError, match="sampling_type: got 'top_k'"):
        model.generate(idx, 2, "top_k")
