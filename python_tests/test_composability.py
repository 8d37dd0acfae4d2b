"""Modules compose: hooks, adapters, quantised and parametrised weights act wherever a submodule holds weights."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from randomised import randomised
from torch import distributed, nn

import xlstm_cuda
from xlstm_cuda import mLSTM, sLSTM
from xlstm_cuda.weights import is_plain

VOCAB = 30


def lm():
    return xlstm_cuda.xLSTMLMModel(
        xlstm_cuda.xLSTMLMModelConfig(
            vocab_size=VOCAB, embedding_dim=32, num_blocks=2, slstm_at=[1],
            mlstm_block=xlstm_cuda.mLSTMBlockConfig(xlstm_cuda.mLSTMLayerConfig(num_heads=2)),
            slstm_block=xlstm_cuda.sLSTMBlockConfig(xlstm_cuda.sLSTMLayerConfig(num_heads=2, recurrent_weight_init="standard")),
        )
    )  # fmt: skip


def large(weight_mode="single"):
    return xlstm_cuda.xLSTMLarge(
        xlstm_cuda.xLSTMLargeConfig(
            embedding_dim=32, num_heads=2, num_blocks=2, vocab_size=VOCAB, return_last_states=True, weight_mode=weight_mode
        )
    )


MODELS = {"LM": lm, "Large": large, "Large_fused": lambda: large("fused")}


def tokens(length=11):
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


def logits(model, idx):
    out = model(idx)
    return out[0] if isinstance(out, tuple) else out


def stepped(model, idx):
    """The logits token by token."""
    state, out = None, []
    for token in idx.split(1, 1):
        y, state = model.step(token, state) if hasattr(model, "step") else model(token, state)
        out.append(y)
    return torch.cat(out, 1)


def holders(model) -> dict[str, nn.Module]:
    """Submodules that hold weights of their own, without the layers whose ``step`` is a method beside ``forward``."""
    return {name: m for name, m in model.named_modules() if m._parameters and type(m).__name__ not in ("mLSTMLayer", "sLSTMCell")}


@pytest.mark.parametrize("way", ["forward", "step"])
@pytest.mark.parametrize("kind", MODELS)
def test_hooks_fire_on_every_module_with_weights(kind, way):
    model, fired = randomised(MODELS[kind]()), set()
    expected = logits(model, tokens())
    for name, module in holders(model).items():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    got = logits(model, tokens()) if way == "forward" else stepped(model, tokens())
    assert fired == set(holders(model))
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["forward", "step"])
def test_what_a_hook_returns_counts(way):
    run = logits if way == "forward" else stepped
    model = randomised(lm())
    before = run(model, tokens())
    for part in ("0.xlstm.mlstm_cell.fgate", "0.xlstm.conv1d.conv", "1.xlstm.conv1d.conv", "1.xlstm.fgate", "1.xlstm.ogate"):
        handle = model.get_submodule(f"xlstm_block_stack.blocks.{part}").register_forward_hook(lambda _, __, y: y * 2)
        assert (run(model, tokens()) - before).abs().max() > 1e-4, part
        handle.remove()
    assert torch.equal(run(model, tokens()), before)


def test_global_hooks_fire_everywhere():
    model, seen = lm(), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(tokens())
    finally:
        handle.remove()
    assert set(holders(model).values()) <= seen


def test_full_backward_hooks_fire_on_every_module_with_weights():
    model, fired = lm(), set()
    for name, module in holders(model).items():
        module.register_full_backward_hook(lambda *_, name=name: fired.add(name))
    model(tokens()).square().mean().backward()
    assert fired == set(holders(model))


class _Half(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.register_forward_hook(lambda *_: None), lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None), lambda m: m.register_full_backward_pre_hook(lambda *_: None),
        lambda m: nn.utils.parametrize.register_parametrization(m, "weight", _Half()),
        lambda m: setattr(m, "forward", lambda x: x), lambda m: setattr(m, "__class__", type("Mine", (nn.Linear,), {})),
        lambda m: setattr(m, "weight", nn.Parameter(Int8Weight.of(m.weight), False)),
    ],
    ids=["forward", "pre", "backward", "backward_pre", "parametrisation", "own_forward", "subclass", "subclass_weight"],
)  # fmt: skip
def test_is_plain_knows_every_change(change):
    module = nn.Linear(4, 4)
    assert is_plain(module, nn.Linear) and not is_plain(module, nn.Conv1d)
    change(module)
    assert not is_plain(module, nn.Linear)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("kind", MODELS)
def test_lora_on_every_linear_trains_every_adapter(kind):
    peft = pytest.importorskip("peft")
    model = randomised(MODELS[kind]().double())
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=linears, init_lora_weights=False), model)
    logits(adapted, tokens()).square().mean().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(linears)
    for name, p in adapters.items():
        assert p.grad is not None and p.grad.abs().max() > 0, name
    with torch.no_grad():
        torch.testing.assert_close(stepped(adapted, tokens()), logits(adapted, tokens()), atol=1e-9, rtol=1e-7)


# ---------------------------------------------------------------- quantised weights


class Int8Weight(torch.Tensor):
    """Rows of int8 with a scale each; knows nn.functional.linear and nothing else, as weight-only quantisation does."""

    @staticmethod
    def of(weight):
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        made = torch.Tensor._make_wrapper_subclass(Int8Weight, weight.shape, dtype=weight.dtype)
        made.values, made.scale = (weight.detach() / scale).round().to(torch.int8), scale
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, bias = (*args, None)[:3]
            return nn.functional.linear(x, weight.values.to(x.dtype) * weight.scale, bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            made = torch.Tensor._make_wrapper_subclass(cls, args[0].shape, dtype=args[0].dtype)
            made.values, made.scale = args[0].values, args[0].scale
            return made
        raise NotImplementedError(f"Int8Weight has no {function}")


def rounded(model):
    """The same model with every Linear's weight as int8 would have it, kept in float32."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                module.weight.copy_((module.weight / scale).round() * scale)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_weight_subclasses(kind):
    model = randomised(MODELS[kind]()).requires_grad_(False)
    expected = logits(rounded(model), tokens())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Int8Weight.of(module.weight), requires_grad=False)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(stepped(model, tokens()), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_torchao_int8_weight_only(kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = randomised(MODELS[kind]()).requires_grad_(False)
    same_weights = copy.deepcopy(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert type(module.weight) is not nn.Parameter
            same_weights.get_submodule(name).weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    expected = logits(same_weights, tokens())
    torch.testing.assert_close(logits(model, tokens()), expected, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(stepped(model, tokens()), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_quantize_dynamic(kind):
    model = randomised(MODELS[kind]()).requires_grad_(False)
    expected = logits(model, tokens())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    for got in (
        logits(quantised, tokens()),
        stepped(quantised, tokens()),
    ):  # activations have 8 bits too, by their range in a call
        assert torch.cosine_similarity(got.flatten(), expected.flatten(), 0) > 0.99


# ---------------------------------------------------------------- parametrised weights


@pytest.mark.parametrize("kind", MODELS)
def test_weight_norm_on_every_linear_and_convolution(kind):
    model = randomised(MODELS[kind]())
    expected = logits(model, tokens())
    for module in list(model.modules()):
        if type(module) in (nn.Linear, nn.Conv1d):
            nn.utils.parametrizations.weight_norm(module)
    got = logits(model, tokens())
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(stepped(model, tokens()), expected, atol=2e-5, rtol=1e-4)
    got.square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "original" in name)


@pytest.mark.parametrize("layer", [sLSTM, mLSTM])
def test_weight_norm_on_a_layer(layer):
    layer = layer(6, 8, num_heads=2)
    x = torch.randn(5, 2, 6)
    expected = layer(x)[0]
    nn.utils.parametrizations.weight_norm(layer, "weight_ih_l0")
    got = layer(x)[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    got.sum().backward()
    assert layer.parametrizations.weight_ih_l0.original0.grad.abs().max() > 0


# ---------------------------------------------------------------- weights of one half precision under autocast to the other


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", [*MODELS, "sLSTM", "mLSTM"])
def test_autocast_casts_weights_of_every_dtype(kind, dtypes):
    weights, autocast = dtypes
    model = randomised({"sLSTM": lambda: sLSTM(8, 8, num_heads=2), "mLSTM": lambda: mLSTM(8, 8, num_heads=2), **MODELS}[kind]())
    x = torch.randn(5, 2, 8) if kind.endswith("LSTM") else tokens()
    run = (lambda model, x: model(x)[0]) if kind.endswith("LSTM") else logits
    expected = run(model, x)
    model.to(weights)
    with torch.autocast("cpu", autocast):
        got = run(model, x)
        with torch.no_grad():
            pieces = torch.stack([model.step(x[0])[0]]) if kind.endswith("LSTM") else stepped(model, x)
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    scale = expected.abs().max()
    assert (got - expected).abs().max() < 0.05 * scale
    assert (pieces - (expected[:1] if kind.endswith("LSTM") else expected)).abs().max() < 0.05 * scale


# ---------------------------------------------------------------- sharded after meta construction


def sharded(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    mesh = distributed.init_device_mesh("cpu", (2,))
    for name, make in (("LM", lm), ("Large", large), ("sLSTM", lambda: sLSTM(8, 8, 2)), ("mLSTM", lambda: mLSTM(8, 8, 2))):
        with torch.device("meta"):
            model = make()
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for weight in model.parameters():
                weight.to_local().fill_(torch.nan)
        model.reset_parameters()
        weights = {key: weight.full_tensor() for key, weight in model.state_dict().items()}
        out = model(torch.randn(4, 3, 8))[0] if name.endswith("LSTM") else logits(model, tokens())
        out.square().mean().backward()
        assert all(p.grad is not None and p.grad.to_local().isfinite().all() for p in model.parameters()), name
        if rank == 0:
            torch.save(weights, Path(folder) / f"{name}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo")
def test_reset_parameters_after_meta_and_fully_shard(tmp_path):
    torch.multiprocessing.spawn(sharded, (str(tmp_path),), nprocs=2)
    for name, make in (("LM", lm), ("Large", large), ("sLSTM", lambda: sLSTM(8, 8, 2)), ("mLSTM", lambda: mLSTM(8, 8, 2))):
        got, whole = torch.load(tmp_path / f"{name}.pt", weights_only=True), make().state_dict()
        assert got.keys() == whole.keys()
        for key, expected in whole.items():
            assert got[key].isfinite().all(), key
            if "bias" in key and "igate" not in key and "conv" not in key and "bias_gate" not in key and name != "Large":
                assert torch.equal(got[key], expected), key  # not drawn
            elif expected.numel() >= 64 and expected.std() > 0:
                assert 0.6 < got[key].std() / expected.std() < 1.6, key
