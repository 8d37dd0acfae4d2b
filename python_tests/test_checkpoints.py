"""checkpoints.load: every kind of official file, and errors that name key and file and leave the model as it was."""

import json
import os
import re

import peak_memory
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


def save(weights, file):
    """In the format of the file's suffix."""
    if file.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch", reason="pip install safetensors").save_file(weights, file)
    else:
        torch.save(weights, file)


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
    file = tmp_path / f"weights{suffix}"
    save(large().state_dict(), file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:3], b"", b"not a checkpoint at all"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            checkpoints.load(file, large())


def test_truncated_index_and_config_raise(tmp_path):
    save(large().state_dict(), tmp_path / "model.safetensors")
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


def assert_refused(file, message):
    """The error names the file and says this, and the model that should have the weights is as it was."""
    model, before = large(), large()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=rf"{re.escape(file.name)}: {message}"):
        checkpoints.load(file, model)
    assert same(model, before)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_models_weights_raise_and_leave_the_model_as_it_was(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    save(stack().state_dict(), file)
    assert_refused(file, "got no embedding.weight, .*expected by xLSTMLarge")


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


# ---------------------------------------------------------------- files that somebody made


def write_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


@pytest.mark.parametrize("length", [0, 3, 100, 4000])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_1.6"])
def test_every_truncation_is_a_value_error_that_names_the_file(tmp_path, legacy, length):
    file = tmp_path / "weights.pt"
    torch.save(large().state_dict(), file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[: -length - 1])
    with pytest.raises(ValueError, match=r"weights\.pt: not a readable checkpoint"):
        checkpoints.load(file, large())


def test_a_flipped_bit_in_the_weights_is_found_by_the_checksum(tmp_path):
    file, source = tmp_path / "weights.pt", large()
    torch.save(source.state_dict(), file)
    content = bytearray(file.read_bytes())
    content[content.index(source.lm_head.weight.detach().numpy().tobytes()) + 5] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pt: .*checksum"):
        checkpoints.load(file, large())


def test_a_file_without_permission_is_the_systems_error(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(large().state_dict(), file)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(PermissionError, match=r"weights\.pt"):
        checkpoints.load(file, large())


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_dtype_raise(tmp_path, suffix, dtype):
    weights, file = large().state_dict(), tmp_path / f"weights{suffix}"
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    save(weights, file)
    assert_refused(file, rf"lm_head\.weight: got dtype {str(dtype)[6:]}, expected float32 or")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_of_another_floating_dtype_load(tmp_path, dtype):
    source, target = large(), large()
    torch.save({key: value.to(dtype) for key, value in source.state_dict().items()}, tmp_path / "weights.pt")
    checkpoints.load(tmp_path / "weights.pt", target)
    assert torch.equal(target.lm_head.weight, source.lm_head.weight.to(dtype).float())


@pytest.mark.parametrize("content", ["integer_key", "meta", "sparse", "expanded"])
def test_tensors_that_are_no_plain_weights_raise(tmp_path, content):
    weights = dict(large().state_dict())
    if content == "integer_key":
        weights = {number: value for number, value in enumerate(weights.values())}
    else:
        weight = weights["lm_head.weight"]
        make = {
            "meta": lambda: weight.to("meta"),
            "sparse": weight.to_sparse,
            "expanded": lambda: weight[:1, :1].clone().expand(20, 32),
        }
        weights["lm_head.weight"] = make[content]()
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: (got the key 0|lm_head\.weight)"):
        checkpoints.load(tmp_path / "weights.pt", large())


def index_of(names):
    return json.dumps({"weight_map": names})


@pytest.mark.parametrize("form", ["parent", "absolute", "link", "linked_folder"])
def test_an_index_never_leads_out_of_its_folder(tmp_path, form):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    save(large().state_dict(), outside / "model.safetensors")
    name = {"parent": "../outside/model.safetensors", "absolute": str(outside / "model.safetensors")}.get(form, "a.safetensors")
    if form == "link":
        (folder / name).symlink_to(outside / "model.safetensors")
    elif form == "linked_folder":
        (folder / "in").symlink_to(outside)
        name = "in/model.safetensors"
    (folder / "model.safetensors.index.json").write_text(index_of({"lm_head.weight": name}))
    with pytest.raises(ValueError, match=r"safetensors: leads to .*outside"):
        checkpoints.load(folder, large())
    (folder / "model.safetensors.index.json").unlink()
    if form == "link":
        with pytest.raises(ValueError, match=r"a\.safetensors: leads to .*outside"):
            checkpoints.load(folder, large())


def test_a_config_never_leads_out_of_its_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    write_config(tmp_path)
    save(large().state_dict(), tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: leads to .*outside"):
        checkpoints.load(tmp_path / "folder")


def test_the_hugging_face_cache_is_read_through_its_links(tmp_path):
    source, cache = large(), tmp_path / "models--NX-AI--xLSTM"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save(source.state_dict(), blobs / "77aa.safetensors")
    (blobs / "77aa.safetensors").rename(blobs / "77aa")
    (blobs / "88bb").write_text(json.dumps(CONFIG))
    (snapshot / "model.safetensors").symlink_to("../../blobs/77aa")
    (snapshot / "config.json").symlink_to("../../blobs/88bb")
    assert same(checkpoints.load(snapshot), source)


@pytest.mark.parametrize(
    "names",
    [{"a": 3}, {"a": None}, {"a": ["b"]}, {}, [], {"a": ""}, {"a": "."}, {"a": "x\0.bin"}, {"a": "\ud800.bin"}, {"a": "a.txt"}],
    ids=repr,
)
def test_an_odd_index_raises(tmp_path, names):
    save(large().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index_of(names))
    with pytest.raises(ValueError, match=r"bin: leads nowhere|index\.json: got "):
        checkpoints.load(tmp_path, large())


def test_an_index_that_names_a_missing_or_impossible_file_raises(tmp_path):
    for name in ("gone.safetensors", "x" * 300 + ".safetensors"):
        (tmp_path / "model.safetensors.index.json").write_text(index_of({"a": name}))
        with pytest.raises(FileNotFoundError, match=name):
            checkpoints.load(tmp_path, large())


def test_two_indices_raise(tmp_path):
    save(large().state_dict(), tmp_path / "model.safetensors")
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text(index_of({"lm_head.weight": "model.safetensors"}))
    with pytest.raises(ValueError, match=r"b\.safetensors\.index\.json: got a second index beside a\.safetensors"):
        checkpoints.load(tmp_path, large())


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"embedding_dim": ' + "9" * 5000 + "}", " " * (17 << 20)], ids=["deep", "long", "big"]
)
def test_json_that_is_hard_to_read_raises(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: not readable JSON"):
        checkpoints.read_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_dim": 2**40}, {"embedding_dim": 2**63}, {"embedding_dim": 0}, {"embedding_dim": "32"}, {"embedding_dim": 3.0},
        {"num_heads": True}, {"num_heads": 3}, {"num_blocks": 10**9}, {"num_blocks": -1}, {"num_blocks": None},
        {"vocab_size": [20]}, {"vocab_size": 2**50}, {"use_bias": 1}, {"weight_mode": "both"}, {"weight_mode": []},
        {"norm_eps": "small"}, {"ffn_round_up_to_multiple_of": 0}, {"ffn_proj_factor": float("nan")},
        {"ffn_proj_factor": float("inf")}, {"ffn_proj_factor": -3.0}, {"qk_dim_factor": float("inf")}, {"gate_soft_cap": {}},
        {"model_type": 7},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_describes_no_model_raises_without_memory(tmp_path, change):
    save(large().state_dict(), tmp_path / "model.safetensors")
    write_config(tmp_path, **change)
    with peak_memory.measured() as peak, pytest.raises(ValueError) as raised:
        checkpoints.load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert peak.bytes < 50e6


def test_shapes_are_compared_before_memory_is_taken(tmp_path):
    save(large().state_dict(), tmp_path / "model.safetensors")
    write_config(tmp_path, embedding_dim=16384, num_blocks=2)  # 10 GB
    with peak_memory.measured() as peak, pytest.raises(ValueError, match="size mismatch"):
        checkpoints.load(tmp_path)
    assert peak.bytes < 50e6


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_mapped_not_copied(tmp_path, suffix):
    source, target = (large(vocab_size=400_000) for _ in range(2))  # 2 * 51 MB each
    file, taken = tmp_path / f"weights{suffix}", []
    save(source.state_dict(), file)
    target.register_load_state_dict_pre_hook(lambda *_: taken.append(peak_memory.resident("RssAnon")))
    before = peak_memory.resident("RssAnon")
    checkpoints.load(file, target)
    assert same(target, source)
    assert taken and max(taken) - before < 20e6
