"""`import xlstm` served by this package: names, official signatures and layouts, users' imports. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from xlstm_cuda import integrations
from xlstm_cuda.integrations import alias

START = "import sys, torch, xlstm_cuda\nfrom xlstm_cuda.integrations import alias_xlstm, enabled, IntegrationError\n"


def run(code: str, *, aliased: bool = True) -> str:
    """The output of code in a fresh interpreter, after alias_xlstm()."""
    program = START + ("handle = alias_xlstm()\n" if aliased else "") + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def official():
    return pytest.importorskip("xlstm", reason="pip install 'xlstm_cuda[peers]'")


def test_refuses_when_xlstm_is_imported_and_disable_removes_it():
    run(
        """
        sys.modules["xlstm"] = sys
        try:
            alias_xlstm()
        except IntegrationError as error:
            assert "xlstm is imported already" in str(error)
        else:
            raise AssertionError
        del sys.modules["xlstm"]
        handle = alias_xlstm()
        import xlstm
        assert alias_xlstm() is handle and enabled() == ("alias_xlstm",)
        assert xlstm.xLSTMLMModel is xlstm_cuda.xLSTMLMModel and xlstm.__version__ == "2.0.6"
        try:
            xlstm_cuda.integrations.xlstm.enable()
        except IntegrationError as error:
            assert "alias_xlstm" in str(error)
        handle.disable()
        assert not [name for name in sys.modules if name.split(".")[0] == "xlstm"] and enabled() == ()
        """,
        aliased=False,
    )


def test_every_public_name_of_the_official_package_is_there_or_says_what_is_instead(official):
    """The official package in this process, the alias in another: its modules are ours, and so are the names in them."""
    import importlib
    import inspect
    import pkgutil

    wanted = {}
    names = [found.name for found in pkgutil.walk_packages(official.__path__, "xlstm.", onerror=lambda _: None)]
    for name in ["xlstm", *(name for name in names if ".src" not in name and "_slstm" not in name)]:
        module = importlib.import_module(name)
        names = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        wanted[name] = [key for key in names if inspect.isclass(getattr(module, key)) or inspect.isfunction(getattr(module, key))]
    output = run(
        f"""
        import importlib
        for name, keys in {wanted!r}.items():
            module = importlib.import_module(name)
            for key in keys:
                try:
                    getattr(module, key)
                except ImportError as error:
                    assert "instead: " in str(error)
                except AttributeError:
                    print(name, key)
        """
    )
    assert output == ""


def test_imports_of_neuralforecast_and_a_model_as_it_builds_it():
    """The names of neuralforecast 3.3.0, models/xlstm.py:18-20 and :210-228, both backbones, without a GPU."""
    run(
        """
        from xlstm.blocks.mlstm.block import mLSTMBlockConfig
        from xlstm.blocks.slstm.block import sLSTMBlockConfig
        from xlstm.xlstm_block_stack import xLSTMBlockStack, xLSTMBlockStackConfig
        for block in ({"slstm_block": sLSTMBlockConfig()}, {"mlstm_block": mLSTMBlockConfig()}):
            config = xLSTMBlockStackConfig(context_length=24, num_blocks=2, embedding_dim=128, bias=True, dropout=0.1, **block)
            stack = xLSTMBlockStack(config)
            stack(torch.randn(3, 24, 128)).square().sum().backward()
            assert all(parameter.grad.isfinite().all() for parameter in stack.parameters())
        """
    )


def test_neuralforecast_itself():
    pytest.importorskip(
        "neuralforecast.models.xlstm", reason="the PyPI package neuralforecast cannot be imported", exc_type=ImportError
    )
    run(
        """
        from neuralforecast.models.xlstm import xLSTM
        model = xLSTM(h=4, input_size=24, backbone="sLSTM", encoder_hidden_size=16, max_steps=1)
        window = {"insample_y": torch.randn(3, 24, 1), "futr_exog": None, "hist_exog": None, "stat_exog": None}
        assert model(window).shape[:2] == (3, 4)
        """
    )


def test_transformers_runs_on_the_alias_with_its_own_weights():
    pytest.importorskip("transformers", reason="pip install 'xlstm_cuda[peers]'")
    run(
        """
        from transformers.models.xlstm import modeling_xlstm
        from xlstm_cuda.integrations.alias import mLSTMBlock
        assert modeling_xlstm.external_xlstm and issubclass(modeling_xlstm.xLSTMBlock, mLSTMBlock)
        config = modeling_xlstm.xLSTMConfig(vocab_size=50, hidden_size=128, num_hidden_layers=2, num_heads=4)
        model = modeling_xlstm.xLSTMForCausalLM(config).eval()
        ids = torch.randint(2, 50, (1, 9))
        assert model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 13)
        with xlstm_cuda.integrations.transformers.enable():
            assert model(ids).logits.isfinite().all()
        """
    )


def close(got, expected):
    import torch

    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def filled(ours, theirs):
    """Both with the same weights, away from their init."""
    import torch

    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_norms_equal_the_official_ones(official):
    import torch
    from xlstm.components import ln
    from xlstm.xlstm_large import components

    x = torch.randn(2, 3, 5, 4)
    for ours, theirs, inputs in (
        (alias.LayerNorm(ndim=4), ln.LayerNorm(ndim=4), x),
        (alias.MultiHeadLayerNorm(ndim=12), ln.MultiHeadLayerNorm(ndim=12), x),
        (alias.RMSNorm(4, use_bias=True), components.RMSNorm(4, use_bias=True), x),
        (alias.LargeMultiHeadLayerNorm(5, 4), components.MultiHeadLayerNorm(5, 4), x),
    ):
        one, other = filled(ours, theirs)
        close(one(inputs), other(inputs))
    close(alias.soft_cap(10 * x, cap_value=3.0), components.soft_cap(10 * x, 3.0))
    with pytest.raises(ValueError, match="residual_weight: got False, expected True"):
        alias.LayerNorm(4, residual_weight=False)
    with pytest.raises(ValueError, match="use_weight: got False"):
        alias.RMSNorm(4, use_weight=False)
    for norm, sizes in ((alias.RMSNorm, (4,)), (alias.LargeMultiHeadLayerNorm, (5, 4))):
        with pytest.raises(TypeError, match=rf"{norm.__name__}.__init__\(\) got an unexpected keyword argument 'use_bais'"):
            norm(*sizes, use_bais=True)


def test_headwise_expand_equals_the_official_one(official):
    import torch
    from xlstm.components import linear_headwise as theirs

    options = dict(in_features=12, num_heads=3)
    one, other = filled(
        alias.LinearHeadwiseExpand(alias.LinearHeadwiseExpandConfig(**options)),
        theirs.LinearHeadwiseExpand(theirs.LinearHeadwiseExpandConfig(**options)),
    )
    x = torch.randn(2, 5, 12)
    close(one(x), other(x))
    with pytest.raises(ValueError, match="_out_features: got 24, expected 12"):
        alias.LinearHeadwiseExpand(alias.LinearHeadwiseExpandConfig(expand_factor_up=2, **options))
    with pytest.raises(ValueError, match="num_heads: got 5"):
        alias.LinearHeadwiseExpandConfig(in_features=12, num_heads=5)


def test_mlstm_cell_equals_the_official_one(official):
    import torch
    from xlstm.blocks.mlstm import backends
    from xlstm.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig

    options = dict(context_length=9, embedding_dim=12, num_heads=3)
    one, other = filled(alias.mLSTMCell(alias.mLSTMCellConfig(**options)), mLSTMCell(mLSTMCellConfig(**options)))
    xs = [torch.randn(2, 9, 12) for _ in range(3)]
    close(one(*xs), other(*xs))
    first = [x[:, :1] for x in xs]
    (h, state), (h0, state0) = one.step(*first), other.step(*first)
    close(h, h0)
    for got, expected in zip(state, state0):
        close(got, expected)
    q, k, v = (torch.randn(2, 3, 9, 4) for _ in range(3))
    i, f = torch.randn(2, 3, 9, 1), torch.randn(2, 3, 9, 1)
    close(alias.parallel_stabilized_simple(q, k, v, i, f), backends.parallel_stabilized_simple(q, k, v, i, f))


@pytest.mark.parametrize("output_shape", ["BNSH", "SBH", "BSH", "SBNH"])
def test_slstm_cell_equals_the_official_one(official, output_shape):
    import torch
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    options = dict(hidden_size=12, num_heads=3, backend="vanilla", dtype="float32", output_shape=output_shape)
    one, other = filled(alias.sLSTMCell(alias.scalar_block.sLSTMCellConfig(**options)), sLSTMCell(sLSTMCellConfig(**options)))
    x = torch.randn(2, 9, 48)
    for got, expected in zip(one(x), other(x)):
        close(got, expected)


def test_function_of_every_state_takes_the_place_of_the_compiled_one(official):
    import torch
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    NH, DH, D = 3, 4, 12
    vanilla = sLSTMCell(sLSTMCellConfig(hidden_size=D, num_heads=NH, backend="vanilla", dtype="float32"))
    filled(alias.sLSTMCell(alias.scalar_block.sLSTMCellConfig(hidden_size=D, num_heads=NH)), vanilla)
    x, state = torch.randn(9, 2, 4, NH, DH), torch.zeros(4, 2, D)
    expected = vanilla._impl(True, x.flatten(2), state)
    kernel = vanilla._recurrent_kernel_.view(NH, 4, DH, DH).permute(0, 3, 1, 2).flatten(2)
    bias = vanilla._bias_.view(4, NH, DH).transpose(0, 1).flatten()
    got = alias.sLSTMCellFuncGenerator(True, vanilla.config).apply(True, x.transpose(2, 3).flatten(2), state, kernel, bias)
    close(got, expected)


def test_nothing_is_on_here():
    assert integrations.enabled() == ()
