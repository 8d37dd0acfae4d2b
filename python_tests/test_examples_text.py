"""The measured examples on text at small size. What else is asked of examples: test_examples.py."""

from __future__ import annotations

import pytest
import torch
from test_examples import check_claims, quick

language_model = pytest.importorskip("examples.language_model")


@pytest.mark.parametrize("name", ["language_model", "long_context"])
def test_every_claim_holds_at_small_size(name, tmp_path):
    check_claims(name)


def test_models_have_the_same_size():
    assert (
        len({round(values / 1000) for values in (quick("language_model").of(n, "parameters")[0] for n in language_model.MODELS)})
        <= 2
    )


def test_memory_is_that_of_the_tensors():
    """The state of nn.LSTM is h and c of two layers; keys and values are two vectors for each block and byte."""
    assert language_model.memory(language_model.LSTM()) == [4 * 2 * 2 * 88] * len(language_model.LENGTHS)
    per_byte = 4 * 2 * language_model.BLOCKS * language_model.WIDTH
    assert language_model.memory(language_model.transformer()) == [per_byte * length for length in language_model.LENGTHS]


def test_a_model_that_knows_nothing_needs_eight_bits():
    model = torch.nn.Sequential(torch.nn.Embedding(256, 4), torch.nn.Linear(4, 256))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    assert language_model.bits_per_byte(model, torch.zeros(20 * 256, dtype=torch.uint8), 16) == pytest.approx(8)
