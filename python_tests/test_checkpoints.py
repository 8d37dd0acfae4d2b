"""checkpoints.load: every kind of official file, and errors that name key and file and leave the model as it was."""

import json

import pytest
import torch

from xlstm_cuda import (
    checkpoints,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
    xLSTMLarge,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm_cuda.blocks import sLSTMBlockConfig, sLSTMLayerConfig

CONFIG = dict(embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=20, ffn_proj_factor=2.667)


def large(**options):
    return xLSTMLarge(xLSTMLargeConfig(**(CONFIG | options)))


def stack():
    layer = sLSTMLayerConfig(num_heads=2)
    return xLSTMBlockStack(xLSTMBlockStackConfig(slstm_block=sLSTMBlockConfig(layer), embedding_dim=16, num_blocks=2))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_load_state_dict_files(tmp_path, suffix, wrapper):
    source, target = stack(), stack()
    content = source.state_dict()
    torch.save(content if wrapper is None else {wrapper: content, "step": 3}, tmp_path / f"weights{suffix}")
    assert checkpoints.load(tmp_path / f"weights{suffix}", target) is target
    assert same(source, target)


@pytest.mark.parametrize("embedding", ["embedding.weight", "backbone.embeddings.weight"], ids=["xlstm", "transformers"])
@pytest.mark.parametrize("weight_mode", ["single", "fused"])
def test_load_sharded_safetensors_builds_the_model_from_its_config(tmp_path, embedding, weight_mode):
    save_file = pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file
    source = large(weight_mode=weight_mode)
    weights = source.state_dict()
    weights[embedding] = weights.pop("embedding.weight")
    keys = sorted(weights)
    save_file({key: weights[key] for key in keys[:5]}, tmp_path / "model_0.safetensors")
    save_file({key: weights[key] for key in keys[5:]}, tmp_path / "model_1.safetensors")
    if embedding == "embedding.weight":
        (tmp_path / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in CONFIG.items()) + "use_bias: false\n")
    else:
        names = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}
        config = {names.get(key, key): value for key, value in CONFIG.items()} | {
            "model_type": "xlstm",
            "return_last_states": False,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
    model = checkpoints.load(tmp_path)
    idx = torch.randint(0, 20, (2, 9))
    assert torch.allclose(model(idx), source(idx), atol=1e-5)


def damaged(weights, change):
    weights = dict(weights)
    if change == "missing":
        del weights["lm_head.weight"]
    elif change == "unexpected":
        weights["backbone.blocks.0.extra.weight"] = torch.zeros(1)
    elif change == "shape":
        weights["lm_head.weight"] = torch.zeros(3, 3)
    return weights


@pytest.mark.parametrize(
    "change,key",
    [("missing", "lm_head.weight"), ("unexpected", "backbone.blocks.0.extra.weight"), ("shape", "lm_head.weight")],
)
def test_weights_that_do_not_fit_raise_and_leave_the_model_as_it_was(tmp_path, change, key):
    model, before = large(), large()
    before.load_state_dict(model.state_dict())
    file = tmp_path / "weights.pt"
    torch.save(damaged(large().state_dict(), change), file)
    with pytest.raises(ValueError) as raised:
        checkpoints.load(file, model)
    assert key in str(raised.value) and str(file) in str(raised.value)
    assert same(model, before)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_and_foreign_files_raise(tmp_path, suffix):
    pytest.importorskip("safetensors", reason="pip install safetensors")
    from safetensors.torch import save_file

    file = tmp_path / f"weights{suffix}"
    weights = large().state_dict()
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:3], b"", b"not a checkpoint at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            checkpoints.load(file, large())


def test_truncated_index_and_config_raise(tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file
    save_file(large().state_dict(), tmp_path / "model.safetensors")
    for content, message in (('{"hidden_size": 3', "not readable JSON"), ("[1]", "got list, expected a JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            checkpoints.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 3}')
    with pytest.raises(ValueError, match=r"config\.json: got model_type 'llama', expected 'xlstm'"):
        checkpoints.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": "all"}')
    with pytest.raises(ValueError, match=r"index\.json: got no weight_map"):
        checkpoints.load(tmp_path, large())


def test_tied_weights_are_kept_once_in_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    source, target = (
        xLSTMLMModel(
            xLSTMLMModelConfig(slstm_block=sLSTMBlockConfig(), embedding_dim=16, num_blocks=1, vocab_size=20, tie_weights=True)
        )
        for _ in range(2)
    )
    safetensors.save_model(source, str(tmp_path / "model.safetensors"))
    assert len(safetensors.load_file(tmp_path / "model.safetensors")) == len(source.state_dict()) - 1
    checkpoints.load(tmp_path, target)
    assert same(source, target) and target.lm_head.weight is target.token_embedding.weight


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_models_weights_raise_and_leave_the_model_as_it_was(tmp_path, suffix):
    save_file = pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file
    file = tmp_path / f"weights{suffix}"
    weights = stack().state_dict()
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    model, before = large(), large()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=rf"weights\{suffix}: got no embedding.weight, .*expected by xLSTMLarge"):
        checkpoints.load(file, model)
    assert same(model, before)


def test_other_kinds_of_content_raise(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: got list, expected a state_dict"):
        checkpoints.load(tmp_path / "list.pt", large())
    torch.save(large(), tmp_path / "module.pt")  # a pickled module would run code
    with pytest.raises(ValueError, match=r"module\.pt: not a readable checkpoint"):
        checkpoints.load(tmp_path / "module.pt", large())
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        checkpoints.load(tmp_path / "nothing.pt", large())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        checkpoints.load(tmp_path / "empty")
    torch.save(large().state_dict(), tmp_path / "large.pt")
    with pytest.raises(ValueError, match=r"no config.json and no config.yaml"):
        checkpoints.load(tmp_path / "large.pt")
    with pytest.raises(ValueError, match="xLSTMBlockStack"):
        checkpoints.load(tmp_path / "large.pt", stack())
