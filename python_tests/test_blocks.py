"""Blocks, stack and language model: sequences in pieces, step by step, states, gradients, errors, copies."""

import copy
import io
import pickle

import pytest
import torch
from randomised import randomised
from torch.nn.functional import cross_entropy

from xlstm_cuda import (
    FeedForwardConfig,
    GatedFeedForward,
    blocks,
    mLSTMBlock,
    mLSTMBlockConfig,
    mLSTMLayer,
    mLSTMLayerConfig,
    sLSTMBlock,
    sLSTMBlockConfig,
    sLSTMLayer,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)

D, VOCAB = 32, 40


def stack_config(cls=xLSTMBlockStackConfig, mlstm=(), slstm=(), **fields):
    return cls(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(**dict(mlstm))),
        slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(**dict(slstm))),
        **(dict(num_blocks=2, embedding_dim=D, slstm_at=[1]) | fields),
    )


def build(kind, **options):
    """A model with every parameter away from its init."""
    slstm, mlstm = dict(embedding_dim=D) | options, dict(embedding_dim=D) | options
    model = {
        "mLSTMLayer": lambda: mLSTMLayer(mLSTMLayerConfig(**mlstm)),
        "mLSTMBlock": lambda: mLSTMBlock(mLSTMBlockConfig(mLSTMLayerConfig(**mlstm))),
        "sLSTMLayer": lambda: sLSTMLayer(sLSTMLayerConfig(**slstm)),
        "sLSTMBlock": lambda: sLSTMBlock(sLSTMBlockConfig(sLSTMLayerConfig(**slstm))),
        "stack": lambda: xLSTMBlockStack(stack_config(mlstm=options, slstm=options)),
        "LM": lambda: xLSTMLMModel(stack_config(xLSTMLMModelConfig, mlstm=options, slstm=options, vocab_size=VOCAB)),
    }[kind]()
    return randomised(model, by=0.2).eval()


def sample(kind, B=2, S=9, dtype=torch.float32):
    return torch.randint(0, VOCAB, (B, S)) if kind == "LM" else torch.randn(B, S, D, dtype=dtype)


KINDS = ("mLSTMLayer", "mLSTMBlock", "sLSTMLayer", "sLSTMBlock", "stack", "LM")
every_kind = pytest.mark.parametrize("kind", KINDS)
kernel_sizes = pytest.mark.parametrize("kernel_size", [0, 1, 2, 4, 7], ids=lambda K: f"K{K}")


def tensors(state):
    """The tensors of a nested state, in a fixed order."""
    if isinstance(state, torch.Tensor):
        return [state]
    children = state.values() if isinstance(state, dict) else state or ()
    return [tensor for child in children for tensor in tensors(child)]


def same_state(a, b, atol=1e-5):
    return len(tensors(a)) == len(tensors(b)) and all(
        torch.allclose(x, y, atol=atol, rtol=1e-4) for x, y in zip(tensors(a), tensors(b))
    )


# ---- sequences in pieces


@kernel_sizes
@every_kind
def test_steps_equal_the_whole_sequence(kind, kernel_size):
    """In float64: a head norm that divides by a small h makes 1e-5 of float32's roundings, in whatever order sums are taken."""
    model, x = build(kind, conv1d_kernel_size=kernel_size).double(), sample(kind, dtype=torch.float64)
    with torch.no_grad():
        whole, last = model(x, return_last_state=True)
        assert torch.equal(whole, model(x))
        state, steps = None, []
        for t in range(x.shape[1]):
            y, state = model.step(x[:, t : t + 1], state)
            steps.append(y)
    assert torch.allclose(torch.cat(steps, 1), whole, rtol=1e-10, atol=1e-10)
    assert same_state(state, last)


@pytest.mark.parametrize("pieces", [(5, 4), (1, 8), (2, 1, 6), (0, 9), (9, 0)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 4, 7], ids=lambda K: f"K{K}")
@every_kind
def test_prefill_in_pieces_then_steps_equals_the_whole_sequence(kind, kernel_size, pieces):
    model, x = build(kind, conv1d_kernel_size=kernel_size), sample(kind, S=12)
    with torch.no_grad():
        whole, last = model(x, return_last_state=True)
        outputs, state = [], None
        for piece in x[:, :9].split(pieces, 1):
            y, state = model(piece, state, True)
            outputs.append(y)
        for t in range(9, 12):
            y, state = model.step(x[:, t : t + 1], state)
            outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1), whole, atol=1e-5)
    assert same_state(state, last)


@every_kind
def test_gradients_through_states_equal_those_of_the_whole_sequence(kind):
    model, x = build(kind).double(), sample(kind, S=11, dtype=torch.float64)
    weight = torch.randn_like(model(x))

    def gradients(outputs):
        model.zero_grad()
        (torch.cat(outputs, 1) * weight).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients([model(x)])
    first, state = model(x[:, :4], return_last_state=True)
    second, state = model(x[:, 4:8], state, True)
    outputs = [first, second]
    for t in range(8, 11):
        y, state = model.step(x[:, t : t + 1], state)
        outputs.append(y)
    for name, actual in gradients(outputs).items():
        scale = expected[name].abs().max()
        assert torch.allclose(actual, expected[name], atol=1e-6 * float(scale) + 1e-12), name


@every_kind
def test_truncated_backpropagation_stops_at_a_detached_state(kind):
    model, x = build(kind), sample(kind)
    _, state = model(x[:, :5], return_last_state=True)
    detached = torch.utils._pytree.tree_map(lambda t: t.detach(), state)
    y, _ = model(x[:, 5:], detached, True)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(t.grad_fn is None for t in tensors(detached))


@every_kind
def test_a_given_state_is_never_changed(kind):
    model, x = build(kind), sample(kind)
    with torch.no_grad():
        _, state = model(x, return_last_state=True)
        before, structure = copy.deepcopy(state), copy.deepcopy(list(state))
        first = model.step(x[:, :1], state)
        assert list(state) == structure
        assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(before)))
        for t in tensors(first[1]):
            t.fill_(torch.nan)  # the new state shares no memory with the old one, nor with the output
        assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(before)))
        assert first[0].isfinite().all()
        model(x, state, True)
        assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(before)))


@every_kind
def test_samples_do_not_depend_on_their_batch(kind):
    model, x = build(kind), sample(kind, B=3)
    with torch.no_grad():
        _, warm = model(x[:1], return_last_state=True)
        _, fresh = model(x[:1, :0], return_last_state=True)
        mixed = torch.utils._pytree.tree_map(lambda a, b: _along_batch(a, b), warm, fresh)
        y, _ = model(x[1:], mixed, True)
        assert torch.allclose(y[0:1], model(x[1:2], warm, True)[0], atol=1e-5)
        assert torch.allclose(y[1:2], model(x[2:3]), atol=1e-5)


def _along_batch(a, b):
    return torch.cat([a, b], 1 if a.dim() == 3 and a.shape[0] == 4 else 0)  # sLSTM states are (4, B, D)


# ---- sizes


@pytest.mark.parametrize("B,S", [(0, 5), (2, 0), (0, 0), (1, 1)])
@every_kind
def test_empty_batch_and_empty_sequence_are_no_error(kind, B, S):
    model, x = build(kind), sample(kind, B, S)
    y, state = model(x, return_last_state=True)
    assert y.shape == (B, S, VOCAB if kind == "LM" else D)
    y.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if B * S == 0 and p.grad is not None)
    with torch.no_grad():
        next_y, _ = model.step(sample(kind, B, 1), state)
    assert next_y.shape[:2] == (B, 1)


@pytest.mark.parametrize("context_length", [-1, 4])
def test_context_length_limits_nothing(context_length):
    model = xLSTMBlockStack(stack_config(context_length=context_length))
    assert model(torch.randn(1, 70, D)).shape == (1, 70, D)


# ---- backends and dtypes


@every_kind
def test_backends_agree(kind):
    model, x = build(kind), sample(kind)
    with torch.no_grad():
        expected, state = model(x, return_last_state=True, backend="reference")
        actual, cpu_state = model(x, return_last_state=True, backend="cpu")
        assert torch.allclose(actual, expected, atol=1e-5)
        assert same_state(cpu_state, state)
        assert torch.allclose(
            model.step(x[:, :1], state, backend="cpu")[0], model.step(x[:, :1], state, backend="reference")[0], atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@every_kind
def test_model_in_other_dtypes_keeps_wide_states(kind, dtype):
    model, x = build(kind), sample(kind)
    with torch.no_grad():
        expected = model(x)
        model = model.to(dtype)
        x = x if kind == "LM" else x.to(dtype)
        y, state = model(x, return_last_state=True)
        step, _ = model.step(x[:, -1:], model(x[:, :-1], return_last_state=True)[1])
    assert y.dtype == step.dtype == dtype
    error = (y - expected).float().norm() / expected.norm()
    assert error <= {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float64: 1e-5}[dtype]
    assert (step - y[:, -1:]).float().norm() / y[:, -1:].float().norm() <= {torch.float64: 1e-6}.get(dtype, 3e-2)
    recurrent = [t for t in tensors(state) if t.dim() != 3 or t.shape[0] == 4]
    assert {t.dtype for t in recurrent} == {torch.float64 if dtype == torch.float64 else torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_kind
def test_autocast_trains_float32_parameters(kind, dtype):
    model, x = build(kind), sample(kind, S=20)
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        y, state = model(x, return_last_state=True)
        step, _ = model.step(x[:, :1], state)
    y.float().square().mean().backward()
    assert (y.float() - expected).norm() <= 5e-2 * expected.norm()
    assert step.isfinite().all()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# ---- PyTorch's machinery


@every_kind
def test_deepcopy_pickle_and_state_dict_give_the_same_model(kind):
    model, x = build(kind), sample(kind)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(kind)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
            assert torch.equal(twin(x), expected)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
        assert torch.equal(model(x), expected)


def test_the_loading_hook_of_a_copy_acts_on_the_copy():
    model = copy.deepcopy(build("sLSTMLayer", num_heads=2))
    cuda = {key: value.clone() for key, value in model.state_dict().items()}
    kernel = cuda["slstm_cell._recurrent_kernel_"]
    cuda["slstm_cell._recurrent_kernel_"] = kernel.view(2, 4, 16, 16).permute(0, 3, 1, 2).reshape(2, 16, 64)
    model.load_state_dict(cuda)
    assert torch.equal(model.slstm_cell._recurrent_kernel_, kernel)


@every_kind
def test_meta_device_construction_then_reset_parameters(kind):
    with torch.device("meta"):
        model = build(kind)
    assert all(p.is_meta for p in model.parameters())
    assert model(sample(kind).to("meta")).is_meta
    model = model.to_empty(device="cpu")
    torch.manual_seed(1)
    model.reset_parameters()
    assert all(p.isfinite().all() for p in model.parameters())
    assert model(sample(kind)).isfinite().all()


def test_reset_parameters_restores_what_the_constructor_gave():
    torch.manual_seed(1)
    model = xLSTMLMModel(stack_config(xLSTMLMModelConfig, vocab_size=500, embedding_dim=64))
    fresh = {key: value.std() if value.numel() > 1000 else value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.reset_parameters()
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        if value.numel() > 1000:
            assert float(value.std()) == pytest.approx(float(fresh[key]), rel=0.2), key
    assert float(model.token_embedding.weight.detach().std()) == pytest.approx((2 / 5 / 64) ** 0.5, rel=0.05)


def test_powerlaw_bias_is_finite_for_one_unit_per_head():
    layer = sLSTMLayer(sLSTMLayerConfig(embedding_dim=4, num_heads=4))
    assert torch.equal(layer.slstm_cell.b[1], torch.full((4, 1), 5.0))
    assert layer(torch.randn(2, 3, 4)).isfinite().all()


def test_layer_gradients_pass_gradcheck_on_the_reference():
    for layer in (
        mLSTMLayer(mLSTMLayerConfig(embedding_dim=4, round_proj_up_to_multiple_of=4, num_heads=2)),
        sLSTMLayer(sLSTMLayerConfig(embedding_dim=4, num_heads=2, recurrent_weight_init="standard")),
    ):
        layer = layer.double()
        x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, layer=layer: layer(x, backend="reference"), x)
        assert torch.autograd.gradgradcheck(lambda x, layer=layer: layer(x, backend="reference"), x)


def test_lm_learns_to_copy():
    model = xLSTMLMModel(stack_config(xLSTMLMModelConfig, vocab_size=16))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    half = torch.randint(0, 16, (8, 6))
    idx = torch.cat([half, half], 1)
    losses = []
    for _ in range(25):
        loss = cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- construction as in the official README

README = {
    "vocab_size": 64,
    "mlstm_block": {"mlstm": {"conv1d_kernel_size": 4, "qkv_proj_blocksize": 4, "num_heads": 4}},
    "slstm_block": {
        "slstm": {"backend": "cuda", "num_heads": 4, "conv1d_kernel_size": 4, "bias_init": "powerlaw_blockdependent"},
        "feedforward": {"proj_factor": 1.3, "act_fn": "gelu"},
    },
    "context_length": 256,
    "num_blocks": 3,
    "embedding_dim": 32,
    "slstm_at": [1],
}


@pytest.mark.parametrize("slstm_at", [[1], "all"], ids=str)
def test_dacite_construction(slstm_at):
    dacite = pytest.importorskip("dacite", reason="pip install dacite")
    data = README | {"slstm_at": slstm_at}
    config = dacite.from_dict(xLSTMLMModelConfig, data, config=dacite.Config(strict=True))
    assert xLSTMLMModel(config)(torch.randint(0, 64, (2, 8))).shape == (2, 8, 64)


def test_omegaconf_construction():
    omegaconf = pytest.importorskip("omegaconf", reason="pip install omegaconf")
    dacite = pytest.importorskip("dacite", reason="pip install dacite")
    conf = omegaconf.OmegaConf.create(README)
    data = omegaconf.OmegaConf.to_container(conf)
    config = dacite.from_dict(xLSTMLMModelConfig, data, config=dacite.Config(strict=True))
    assert config.block_map == [0, 1, 0]
    assert [type(block).__name__ for block in xLSTMLMModel(config).xlstm_block_stack.blocks] == [
        "mLSTMBlock",
        "sLSTMBlock",
        "mLSTMBlock",
    ]


@pytest.mark.parametrize("slstm_at", [[], [1], "all"], ids=str)
def test_omegaconf_structured_construction(slstm_at):
    """Typed configs, merged with a file's values; the official dataclasses cannot be used so."""
    OmegaConf = pytest.importorskip("omegaconf", reason="pip install omegaconf").OmegaConf
    conf = OmegaConf.merge(OmegaConf.structured(xLSTMLMModelConfig), README | {"slstm_at": slstm_at})
    config = OmegaConf.to_object(conf)
    assert isinstance(config, xLSTMLMModelConfig) and config.block_map == {"[]": [0] * 3, "[1]": [0, 1, 0]}.get(
        str(slstm_at), [1] * 3
    )
    assert xLSTMLMModel(config)(torch.randint(0, 64, (2, 8))).shape == (2, 8, 64)
    with pytest.raises(Exception, match="num_blocks"):
        OmegaConf.merge(OmegaConf.structured(xLSTMLMModelConfig), {"num_blocks": "many"})


CONFIGS = {
    "mLSTMLayer": mLSTMLayerConfig,
    "mLSTMBlock": mLSTMBlockConfig,
    "sLSTMLayer": sLSTMLayerConfig,
    "sLSTMBlock": sLSTMBlockConfig,
    "FeedForward": FeedForwardConfig,
    "Large": lambda: xLSTMLargeConfig(64, 4, 2, 50),
}


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_config_goes_through_omegaconf_unchanged(make):
    OmegaConf = pytest.importorskip("omegaconf", reason="pip install omegaconf").OmegaConf
    config = make()
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config


# ---- errors


@pytest.mark.parametrize(
    "option,value",
    [
        ("function", "lstm"),
        ("gradient_recurrent_cut", True),
        ("gradient_recurrent_clipval", 1.0),
        ("forward_clipval", 1.0),
        ("num_gates", 3),
        ("constants", {"a": 1}),
        ("bias_init", "nonsense"),
        ("recurrent_weight_init", "nonsense"),
    ],
)
def test_slstm_options_that_would_change_the_result_raise(option, value):
    with pytest.raises(ValueError, match=rf"{option}: got"):
        sLSTMLayerConfig(embedding_dim=D, **{option: value})


def test_fields_that_choose_an_official_kernel_do_not_bind_us():
    layer = sLSTMLayer(sLSTMLayerConfig(embedding_dim=D, backend="cuda", dtype="float16", batch_size=3, dtype_s="bfloat16"))
    assert layer(torch.randn(2, 3, D)).dtype == torch.float32


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: mLSTMLayer(mLSTMLayerConfig(embedding_dim=D, num_heads=7)), "num_heads: got 7, expected a divisor"),
        (lambda: sLSTMLayer(sLSTMLayerConfig(embedding_dim=D, num_heads=5)), "num_heads: got 5, expected a divisor"),
        (lambda: mLSTMLayer(mLSTMLayerConfig(embedding_dim=D, qkv_proj_blocksize=0)), "qkv_proj_blocksize: got 0"),
        (lambda: mLSTMLayer(mLSTMLayerConfig(embedding_dim=D, qkv_proj_blocksize=65)), "qkv_proj_blocksize: got 65"),
        (lambda: mLSTMLayer(mLSTMLayerConfig()), "embedding_dim -1"),
        (lambda: mLSTMLayer(mLSTMLayerConfig(embedding_dim=D, conv1d_kernel_size=-1)), "conv1d_kernel_size: got -1"),
        (lambda: sLSTMLayer(sLSTMLayerConfig(embedding_dim=D, conv1d_kernel_size=-1)), "conv1d_kernel_size: got -1"),
        (lambda: sLSTMLayer(sLSTMLayerConfig()), "embedding_dim: got -1"),
        (lambda: FeedForwardConfig(act_fn="tanh"), "act_fn: got 'tanh'"),
        (lambda: FeedForwardConfig(ff_type="ffn"), "ff_type: got 'ffn'"),
        (lambda: GatedFeedForward(FeedForwardConfig()), "embedding_dim"),
        (lambda: stack_config(slstm_at=[2]), "slstm_at: got 2"),
        (lambda: stack_config(slstm_at="some"), "slstm_at: got 'some'"),
        (lambda: xLSTMBlockStack(xLSTMBlockStackConfig(num_blocks=2)), "slstm_block: got None"),
        (lambda: xLSTMLMModel(stack_config(xLSTMLMModelConfig)), "vocab_size: got -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_configs_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ("mLSTMLayer", "sLSTMBlock", "stack"))
def test_wrong_input_shapes_raise(kind):
    model = build(kind)
    for x in (torch.randn(2, 3, D + 1), torch.randn(3, D), torch.randn(1, 2, 3, D)):
        with pytest.raises(ValueError, match="x: got shape"):
            model(x)
    with pytest.raises(ValueError, match=r"x: got shape .*expected \(B, 1, D\)"):
        model.step(torch.randn(2, 2, D))


@every_kind
def test_states_that_do_not_fit_raise(kind):
    model, x = build(kind), sample(kind)
    _, state = model(x, return_last_state=True)
    with pytest.raises(ValueError, match=r"_state.*got shape"):
        model.step(x[:1, :1], state)  # state of another batch size
    with pytest.raises(ValueError, match="state: got keys nonsense"):
        model(x, {"nonsense": None})
    with pytest.raises(TypeError, match="state: got list"):
        model(x, [state])


def test_lm_wrong_ids_raise():
    model = build("LM")
    with pytest.raises(TypeError, match="idx: got dtype float32"):
        model(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"idx: got shape \(3,\)"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"idx: got shape \(2, 3\), expected \(B, 1\)"):
        model.step(torch.zeros(2, 3, dtype=torch.long))


def test_backend_names_are_checked():
    with pytest.raises(ValueError, match="backend: got 'triton'"):
        build("stack")(torch.randn(1, 2, D), backend="triton")


def test_every_public_name_is_exported():
    import xlstm_cuda

    assert all(getattr(xlstm_cuda, name) is getattr(blocks, name) for name in blocks.__all__)
