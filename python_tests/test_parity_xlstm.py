"""The official models' outputs, gradients and keys, from the PyPI package `xlstm` on its vanilla backend."""

import copy
import dataclasses

import pytest
import torch

import xlstm_cuda as ours

official = pytest.importorskip("xlstm", reason="the PyPI package xlstm is the oracle (pip install '.[peers]')")

TOLERANCE = 2e-5


def stack_config(package, *, mlstm=(), slstm=(), feedforward=(), cls="xLSTMBlockStackConfig", mlstm_on=True, ffn=True, **fields):
    """The same config in either package."""
    block = package.mLSTMBlockConfig(mlstm=package.mLSTMLayerConfig(**dict(mlstm))) if mlstm_on else None
    return getattr(package, cls)(
        mlstm_block=block,
        slstm_block=package.sLSTMBlockConfig(
            slstm=package.sLSTMLayerConfig(backend="vanilla", **dict(slstm)),
            feedforward=package.FeedForwardConfig(**dict(feedforward)) if ffn else None,
        ),
        **(dict(context_length=32, num_blocks=2, embedding_dim=32, slstm_at=[1]) | fields),
    )


# The official package cannot build an mLSTM layer without convolution, nor run a convolution of one step.
STACKS = {
    "slstm at 1": {},
    "slstm none": dict(slstm_at=[]),
    "slstm all": dict(slstm_at="all"),
    "slstm without mlstm_block": dict(mlstm_on=False),
    "slstm at -1 of 3": dict(slstm_at=[-1], num_blocks=3),
    "slstm at 0 and 2 of 4": dict(slstm_at=[0, 2], num_blocks=4),
    "slstm conv off": dict(slstm=dict(conv1d_kernel_size=0)),
    "conv off, norms off": dict(slstm=dict(conv1d_kernel_size=0, group_norm_weight=False), add_post_blocks_norm=False),
    "kernel sizes 2 and 7": dict(mlstm=dict(conv1d_kernel_size=2), slstm=dict(conv1d_kernel_size=7)),
    "qkv block 1": dict(mlstm=dict(qkv_proj_blocksize=1)),
    "qkv block 24, does not divide": dict(mlstm=dict(qkv_proj_blocksize=24)),
    "qkv block 64": dict(mlstm=dict(qkv_proj_blocksize=64)),
    "1 and 2 heads": dict(mlstm=dict(num_heads=1), slstm=dict(num_heads=2)),
    "8 and 8 heads": dict(mlstm=dict(num_heads=8), slstm=dict(num_heads=8)),
    "proj factors": dict(mlstm=dict(proj_factor=1.3), feedforward=dict(proj_factor=2.7)),
    "rounding": dict(
        mlstm=dict(proj_factor=1.3, round_proj_up_to_multiple_of=8, round_proj_up_dim_up=False),
        feedforward=dict(round_proj_up_to_multiple_of=4),
    ),
    **{f"act_fn {name}": dict(feedforward=dict(act_fn=name)) for name in ("relu", "relu^2", "sigmoid", "swish", "selu")},
    "bias": dict(bias=True, feedforward=dict(bias=True)),
    "dropout in eval": dict(dropout=0.5, feedforward=dict(dropout=0.5)),
    "no post norm": dict(add_post_blocks_norm=False),
    "no feedforward": dict(ffn=False),
    "no group norm weight": dict(slstm=dict(group_norm_weight=False)),
    "recurrent standard": dict(slstm=dict(recurrent_weight_init="standard", bias_init="small_init")),
    "width 96": dict(embedding_dim=96),
}


def randomised(model):
    """Every parameter away from its init, so that none of them can be ignored."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def pair(cls="xLSTMBlockStack", **options):
    theirs = randomised(getattr(official, cls)(stack_config(official, cls=cls + "Config", **options)))
    mine = getattr(ours, cls)(stack_config(ours, cls=cls + "Config", **options)).eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())
def test_stack_official_weights_give_official_outputs(options):
    theirs, mine = pair(**options)
    x = torch.randn(2, 32, mine.config.embedding_dim)
    with torch.no_grad():
        assert (mine(x) - theirs(x)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS.keys())
def test_stack_state_dict_has_official_keys_order_and_shapes(options):
    theirs, mine = pair(**options)
    shapes = [[(key, tuple(value.shape)) for key, value in model.state_dict().items()] for model in (mine, theirs)]
    assert shapes[0] == shapes[1]
    theirs.load_state_dict(mine.state_dict())


GRADIENTS = ("slstm at 1", "slstm all", "slstm conv off", "bias", "recurrent standard", "qkv block 24, does not divide")


@pytest.mark.parametrize("name", GRADIENTS)
def test_stack_gradients_equal_the_official_ones(name):
    theirs, mine = pair(**STACKS[name])
    x = torch.randn(2, 32, 32)
    weight = torch.randn(2, 32, 32)
    gradients = []
    for model in (theirs, mine):
        leaf = x.clone().requires_grad_()
        (model(leaf) * weight).sum().backward()
        gradients.append({"x": leaf.grad} | {key: p.grad for key, p in model.named_parameters()})
    for key, expected in gradients[0].items():
        assert (gradients[1][key] - expected).abs().max() <= 1e-4 * (1 + expected.abs().max()), key


STEPS = ("slstm at 1", "slstm none", "slstm all", "slstm conv off", "kernel sizes 2 and 7")


@pytest.mark.parametrize("name", STEPS)
def test_stack_step_equals_official_step_and_states_are_exchangeable(name):
    theirs, mine = pair(**STACKS[name])
    x = torch.randn(2, 9, 32)
    their_state = my_state = None
    with torch.no_grad():
        for t in range(9):
            expected, their_state = theirs.step(x[:, t : t + 1], their_state)
            actual, my_state = mine.step(x[:, t : t + 1], my_state)
            assert (actual - expected).abs().max() <= TOLERANCE
            assert _same_form(my_state, their_state)
            if t == 4:  # continue on the other one's state
                their_state, my_state = copy.deepcopy(my_state), copy.deepcopy(their_state)


def _same_form(mine, theirs):
    """Same nesting, keys, types of containers, shapes."""
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_same_form(mine[key], theirs[key]) for key in theirs)
    if isinstance(theirs, tuple):
        return isinstance(mine, tuple) and len(mine) == len(theirs) and all(map(_same_form, mine, theirs))
    return theirs is mine if theirs is None else mine.shape == theirs.shape


def lm_config(package, **fields):
    return stack_config(package, cls="xLSTMLMModelConfig", **(dict(vocab_size=48) | fields))


@pytest.mark.parametrize("tie_weights", [False, True], ids=["untied", "tied"])
def test_lm_official_weights_give_official_logits_and_steps(tie_weights):
    theirs = randomised(
        official.xLSTMLMModel(lm_config(official, tie_weights=tie_weights, add_embedding_dropout=True, dropout=0.1))
    )
    mine = ours.xLSTMLMModel(lm_config(ours, tie_weights=tie_weights, add_embedding_dropout=True, dropout=0.1)).eval()
    mine.load_state_dict(theirs.state_dict())
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    assert (mine.lm_head.weight is mine.token_embedding.weight) == tie_weights
    idx = torch.randint(0, 48, (3, 32))
    with torch.no_grad():
        assert (mine(idx) - theirs(idx)).abs().max() <= TOLERANCE
        expected, actual = theirs.step(idx[:, :1]), mine.step(idx[:, :1])
        assert (actual[0] - expected[0]).abs().max() <= TOLERANCE
        assert _same_form(actual[1], expected[1])


@pytest.mark.parametrize("tie_weights", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("on_embedding", [False, True], ids=["embedding free", "embedding decays"])
def test_lm_weight_decay_groups_are_the_official_ones_by_name(tie_weights, on_embedding):
    fields = dict(tie_weights=tie_weights, weight_decay_on_embedding=on_embedding, bias=True)
    theirs, mine = official.xLSTMLMModel(lm_config(official, **fields)), ours.xLSTMLMModel(lm_config(ours, **fields))
    assert mine.get_weight_decay_optim_group_param_names() == theirs.get_weight_decay_optim_group_param_names()
    groups = mine.get_weight_decay_optim_groups()
    assert [len(group) for group in groups] == [len(group) for group in theirs.get_weight_decay_optim_groups()]
    assert {id(p) for group in groups for p in group} == {id(p) for p in mine.parameters()}
    assert mine._create_weight_decay_optim_groups() == groups  # what the official experiments call


def test_slstm_cuda_layout_is_recognised_on_loading():
    theirs, mine = pair(slstm_at="all", slstm=dict(num_heads=2))
    state = theirs.state_dict()
    for key in [*state]:
        if key.endswith("_recurrent_kernel_"):  # the permutation of the official CUDA cell: [head, in, gate, out]
            NH, G, DH = 2, 4, 16
            state[key] = state[key].view(NH, G, DH, DH).permute(0, 3, 1, 2).reshape(NH, DH, G * DH).clone()
            bias = key.replace("_recurrent_kernel_", "_bias_")
            state[bias] = state[bias].view(G, NH, DH).permute(1, 0, 2).reshape(-1).clone()
    before = {key: value.clone() for key, value in state.items()}
    mine.load_state_dict(state)
    x = torch.randn(2, 32, 32)
    with torch.no_grad():
        assert (mine(x) - theirs(x)).abs().max() <= TOLERANCE
    assert all(torch.equal(state[key], before[key]) for key in before)  # the caller's dictionary is left as it is
    assert all(torch.equal(mine.state_dict()[key], value) for key, value in theirs.state_dict().items())


def test_config_fields_and_defaults_are_the_official_ones():
    for name in (
        "mLSTMLayerConfig",
        "mLSTMBlockConfig",
        "sLSTMLayerConfig",
        "sLSTMBlockConfig",
        "FeedForwardConfig",
        "xLSTMBlockStackConfig",
        "xLSTMLMModelConfig",
    ):
        theirs, mine = (dataclasses.fields(getattr(package, name)) for package in (official, ours))
        assert [field.name for field in mine] == [field.name for field in theirs], name
        if name != "xLSTMBlockStackConfig" and name != "xLSTMLMModelConfig":  # these need a block config
            built = [dataclasses.asdict(getattr(package, name)()) for package in (ours, official)]
            assert built[0] == built[1], name


@pytest.mark.parametrize("bias_init", ["powerlaw_blockdependent", "small_init", "standard", "zeros"])
@pytest.mark.parametrize("recurrent_weight_init", ["zeros", "standard"])
def test_initial_weights_have_the_official_distribution(bias_init, recurrent_weight_init):
    options = dict(
        embedding_dim=128,
        num_blocks=3,
        slstm_at=[1, 2],
        bias=True,
        slstm=dict(bias_init=bias_init, recurrent_weight_init=recurrent_weight_init),
        vocab_size=300,
    )
    theirs, mine = official.xLSTMLMModel(lm_config(official, **options)), ours.xLSTMLMModel(lm_config(ours, **options))
    theirs.reset_parameters()  # ours does it in the constructor
    expected = theirs.state_dict()
    for key, value in mine.state_dict().items():
        if expected[key].unique().numel() <= 2 or (key.endswith("_bias_") and bias_init != "standard"):
            assert torch.allclose(value, expected[key], atol=1e-5), key  # not random
        elif key.endswith("fgate.bias") and "mlstm_cell" in key:
            assert torch.allclose(value, expected[key]), key
        elif value.numel() >= 256:
            error = 5 / value.numel() ** 0.5
            assert float(value.std()) == pytest.approx(float(expected[key].std()), rel=error), key
            assert abs(value.mean()) <= error * value.std(), key
            assert float(value.abs().max()) == pytest.approx(float(expected[key].abs().max()), rel=0.5), key
        else:
            assert value.abs().max() <= 6 * expected[key].abs().max(), key
