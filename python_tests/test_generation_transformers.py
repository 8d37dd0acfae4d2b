"""`generate` of transformers on a model served by xlstm_cuda: what works and what does not, as docs/generation.md says."""

from __future__ import annotations

import pytest
import torch

from xlstm_cuda import checkpoints, generation, integrations

transformers = pytest.importorskip("transformers", reason="pip install 'xlstm_cuda[peers]'")
from transformers.models.xlstm.modeling_xlstm import xLSTMConfig, xLSTMForCausalLM  # noqa: E402

V, S, NEW = 50, 9, 6


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = xLSTMConfig(
        vocab_size=V, hidden_size=128, num_hidden_layers=2, num_heads=4, autocast_kernel_dtype="float32", eos_token_id=None,
        pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = xLSTMForCausalLM(config).eval()
    with integrations.transformers.enable():
        yield model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, V, (2, S), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def greedy(model, ids):
    return model.generate(ids, max_new_tokens=NEW, do_sample=False)


@pytest.fixture
def widths(model):
    """Tokens in each call of the model: 1 where the state is used."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True)
    yield seen
    handle.remove()


def test_its_tokens_are_those_of_our_generate(model, ids, greedy, widths, tmp_path):
    model.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert widths == [S] + [1] * (NEW - 1)  # from the state
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    new, _ = generation.generate(checkpoints.load(tmp_path).eval(), ids, max_new_tokens=NEW, temperature=0)
    assert torch.equal(torch.stack(new), greedy[:, S:])


def test_sampling_several_continuations_and_stop_tokens(model, ids, greedy, widths):
    tokens = model.generate(ids, max_new_tokens=NEW, do_sample=True, top_k=5, top_p=0.9, num_return_sequences=3)
    assert tokens.shape == (6, S + NEW) and widths == [S] + [1] * (NEW - 1)
    stop = int(greedy[0, S + 1])
    stopped = model.generate(ids[:1], max_new_tokens=NEW, do_sample=False, eos_token_id=stop)
    assert stopped[0].tolist() == greedy[0, : greedy[0].tolist().index(stop, S) + 1].tolist()


def test_beam_search_works_without_the_state_only(model, ids, widths):
    with pytest.raises(ValueError, match="cannot use beam search with a cache"):
        model.generate(ids, max_new_tokens=NEW, num_beams=3, do_sample=False)
    widths.clear()
    assert model.generate(ids, max_new_tokens=NEW, num_beams=3, do_sample=False, use_cache=False).shape == (2, S + NEW)
    assert widths == list(range(S, S + NEW))


def test_padding_is_read_as_tokens(model, ids, greedy):
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    mask = (padded != 0).long()
    got = model.generate(padded, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    assert not torch.equal(got[:, S + 3 :], greedy[:, S:])


def test_assisted_generation_is_refused(model, ids):
    for options in (dict(assistant_model=model), dict(prompt_lookup_num_tokens=2)):
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(ids[:1], max_new_tokens=NEW, do_sample=False, **options)


def test_a_cache_does_not_enter_generate(model, ids):
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
    with pytest.raises(AttributeError, match="is_compileable"):
        model.generate(ids, cache=cache, max_new_tokens=2, do_sample=False)
