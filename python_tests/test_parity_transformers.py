"""xLSTMLarge against the transformers xLSTM model: saved by transformers, loaded by checkpoints.load, the same logits.

The oracle is transformers' own PyTorch code, which it uses where the package `xlstm` is not installed; here that is pretended.
"""

import importlib
import sys
import warnings

import pytest
import torch

import xlstm_cuda as ours
from xlstm_cuda import checkpoints

transformers = pytest.importorskip("transformers", reason="the PyPI package transformers is the oracle (pip install '.[peers]')")

TOLERANCE = 2e-5
NOISE = 0.03
BASE = dict(vocab_size=50, hidden_size=128, num_hidden_layers=2, num_heads=4)
CONFIGS = {
    "default": {},
    "tight soft caps": dict(gate_soft_cap=1.5, output_logit_soft_cap=0.7),
    "bias": dict(use_bias=True),
    "no out norm": dict(add_out_norm=False),  # the transformers model has one all the same
    "other widths": dict(qk_dim_factor=1.0, v_dim_factor=2.0, num_heads=2, ffn_proj_factor=1.3, ffn_round_up_to_multiple_of=8),
    "other eps, chunks of 16": dict(norm_eps=1e-3, eps=1e-3, chunk_size=16, norm_reduction_force_float32=False),
}
every_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(scope="module")
def modeling():
    """transformers.models.xlstm.modeling_xlstm, imported as if the package `xlstm` were absent."""
    names = [f"transformers.models.xlstm.{part}" for part in ("configuration_xlstm", "modeling_xlstm")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.utils, "is_xlstm_available", lambda: False)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(names[1])
        for name in names:
            del sys.modules[name]  # the next import is a usual one
    assert not module.external_xlstm
    return module


def theirs(modeling, **options):
    """A transformers model with every parameter away from its init.

    Not too far: with noise of 0.05 its own float32 logits are up to 5e-5 from those in float64.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = modeling.xLSTMForCausalLM(modeling.xLSTMConfig(**(BASE | options))).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * NOISE)
    return model


def loaded(model, folder, **how):
    model.save_pretrained(folder, **how)
    return checkpoints.load(folder).eval()


@every_config
def test_saved_transformers_model_gives_its_logits_here(modeling, options, tmp_path):
    their_model = theirs(modeling, **options)
    model = loaded(their_model, tmp_path)
    assert sum(p.numel() for p in model.parameters()) >= sum(p.numel() for p in their_model.parameters())
    for S in (1, 64, 131):  # the step, whole chunks, chunks and a rest
        idx = torch.randint(0, 50, (2, S))
        with torch.no_grad():
            expected, (actual, _) = their_model(idx).logits, model(idx)
        assert (actual - expected).abs().max() <= TOLERANCE


def test_sharded_transformers_model_with_its_index(modeling, tmp_path):
    their_model = theirs(modeling)
    model = loaded(their_model, tmp_path, max_shard_size="300KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and (tmp_path / "model.safetensors.index.json").is_file()
    idx = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        assert (model(idx)[0] - their_model(idx).logits).abs().max() <= TOLERANCE
    before = [p.clone() for p in model.parameters()]
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shards[1].name}: no such file, but .*index.json"):
        checkpoints.load(tmp_path, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))


def test_state_dict_of_a_transformers_model_in_bfloat16(modeling, tmp_path):
    their_model = theirs(modeling).bfloat16()
    torch.save(their_model.state_dict(), tmp_path / "pytorch_model.bin")
    their_model.config.save_pretrained(tmp_path)
    model = checkpoints.load(tmp_path)
    idx = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        assert (model(idx)[0] - their_model.float()(idx).logits).abs().max() <= TOLERANCE


def test_prefill_then_greedy_steps_equal_generate(modeling, tmp_path):
    their_model = theirs(modeling)
    model = loaded(their_model, tmp_path)
    idx = torch.randint(3, 50, (2, 17))
    with torch.no_grad():
        expected = their_model.generate(
            idx, max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=1, eos_token_id=None
        )
    generated, _ = model.generate(idx, 9)
    assert torch.equal(generated, expected[:, 17:])


def test_gradients_equal_those_of_the_transformers_model(modeling, tmp_path):
    their_model = theirs(modeling)
    model = loaded(their_model, tmp_path).train()
    idx = torch.randint(0, 50, (2, 70))
    their_model.train()(idx, use_cache=False).logits.square().mean().backward()
    model(idx)[0].square().mean().backward()
    expected = {name.replace("backbone.embeddings", "embedding"): p.grad for name, p in their_model.named_parameters()}
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).abs().max() <= 1e-3 * expected[name].abs().max() + 1e-7, name


def test_7b_configuration_has_the_keys_and_shapes_of_the_transformers_model(modeling, tmp_path):
    """On the meta device: no weight is allocated."""
    config = modeling.xLSTMConfig()
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        their_model = modeling.xLSTMForCausalLM(config)
        model = ours.xLSTMLarge(checkpoints.read_config(tmp_path))
    expected = {key: value.shape for key, value in their_model.state_dict().items()}
    expected["embedding.weight"] = expected.pop("backbone.embeddings.weight")
    assert {key: value.shape for key, value in model.state_dict().items()} == expected
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 6_865_424_896
    assert len(expected) == 3 + 32 * 15


def test_transformers_with_the_official_package_gives_the_same_logits(tmp_path):
    """Where `xlstm` is installed, transformers runs its blocks."""
    pytest.importorskip("xlstm", reason="the PyPI package xlstm is the oracle (pip install '.[peers]')")
    module = importlib.import_module("transformers.models.xlstm.modeling_xlstm")
    assert module.external_xlstm
    their_model = theirs(module)
    model = loaded(their_model, tmp_path)
    idx = torch.randint(0, 50, (2, 70))
    with torch.no_grad():
        assert (model(idx)[0] - their_model(idx).logits).abs().max() <= TOLERANCE
