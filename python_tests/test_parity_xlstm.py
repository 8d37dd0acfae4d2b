"""The official models' outputs, gradients and keys, from the PyPI package `xlstm` on its vanilla backend."""

import pytest
import torch

import xlstm_cuda as ours

official = pytest.importorskip("xlstm", reason="the PyPI package xlstm is the oracle (requirements-peers.txt)")

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


STACKS = {
    "slstm at 1": {},
    "slstm none": dict(slstm_at=[]),
    "slstm all": dict(slstm_at="all"),
    "slstm without mlstm_block": dict(mlstm_on=False),
    "slstm at -1 of 3": dict(slstm_at=[-1], num_blocks=3),
    "slstm conv off": dict(slstm=dict(conv1d_kernel_size=0)),
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
