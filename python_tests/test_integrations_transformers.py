"""The xLSTM model of transformers served by xlstm_cuda, with and without the package xlstm: logits, generate, Trainer, pickle."""

from __future__ import annotations

import importlib
import pickle
import sys

import pytest
import torch

from xlstm_cuda import integrations

transformers = pytest.importorskip("transformers", reason="pip install 'xlstm_cuda[peers]'")

PARTS = [f"transformers.models.xlstm.{part}" for part in ("configuration_xlstm", "modeling_xlstm")]


@pytest.fixture(scope="module", params=["with xlstm", "without xlstm"])
def modeling(request):
    """transformers.models.xlstm.modeling_xlstm, imported as if the package `xlstm` were there, or absent."""
    if request.param == "with xlstm":
        pytest.importorskip("xlstm.xlstm_large.model", reason="pip install 'xlstm_cuda[peers]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.utils, "is_xlstm_available", lambda: request.param == "with xlstm")
        for name in PARTS:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(PARTS[1])
        assert module.external_xlstm == (request.param == "with xlstm")
        yield module
        for name in PARTS:
            sys.modules.pop(name, None)


def a_model(modeling, **options):
    config = modeling.xLSTMConfig(
        vocab_size=50,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=4,
        **{"autocast_kernel_dtype": "float32", "eos_token_id": None, **options},
    )
    torch.manual_seed(0)
    return modeling.xLSTMForCausalLM(config).eval()


def ids(B=2, S=70):
    return torch.randint(2, 50, (B, S), generator=torch.Generator().manual_seed(0))


def close(got, expected, bound=2e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= bound * expected.norm().clamp_min(1.0), (got - expected).abs().max()


@torch.no_grad()
def test_logits_and_states(modeling):
    model = a_model(modeling)
    before = model(ids(), use_cache=True)
    with integrations.transformers.enable():
        after = model(ids(), use_cache=True)
        forced = integrations.enabled()
    assert forced == ("transformers",)
    close(after.logits, before.logits)
    for block, state in before.cache.rnn_state.items():
        for got, expected in zip(after.cache.rnn_state[block], state):
            close(got, expected)


def test_gradients(modeling):
    model = a_model(modeling, mode="train", chunk_size=64)
    leaves = list(model.parameters())

    def gradients():
        logits = model(ids(S=64), use_cache=False).logits
        return torch.autograd.grad(logits.square().mean(), leaves)

    expected = gradients()
    with integrations.transformers.enable():
        for got, true in zip(gradients(), expected):
            close(got, true, 1e-4)


def test_generate_gives_the_same_tokens(modeling):
    model = a_model(modeling)
    expected = model.generate(ids(S=9), max_new_tokens=12, do_sample=False)
    assert expected.shape == (2, 21)
    with integrations.transformers.enable():
        got = model.generate(ids(S=9), max_new_tokens=12, do_sample=False)
    assert torch.equal(got, expected)


def test_the_kernels_are_ours(modeling, monkeypatch):
    calls = []
    ours = integrations.mlstm_kernels.functional.mlstm
    monkeypatch.setattr(
        integrations.mlstm_kernels.functional, "mlstm", lambda *args, **options: calls.append(options) or ours(*args, **options)
    )
    model = a_model(modeling)
    with torch.no_grad(), integrations.transformers.enable("cpu"):
        model(ids())
    assert [call["backend"] for call in calls] == ["cpu", "cpu"]
    model(ids())
    assert len(calls) == 2


def test_pickled_model_is_served_and_works_after(modeling):
    with torch.no_grad():
        model = a_model(modeling)
        expected = model(ids()).logits
        with integrations.transformers.enable():
            copy = pickle.loads(pickle.dumps(model))
            close(copy(ids()).logits, expected)
        close(copy(ids()).logits, expected)


def test_trainer_runs_twenty_steps(modeling, tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs the PyPI package accelerate")
    model = a_model(modeling, mode="train", use_cache=False)
    rows = [{"input_ids": row, "labels": row} for row in ids(B=8, S=33)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    with integrations.transformers.enable():
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.5, losses
