"""examples/parity.py, the official parity experiment with another import, runs, and trains as the official package does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("dacite", reason="pip install dacite")
OmegaConf = pytest.importorskip("omegaconf", reason="pip install omegaconf").OmegaConf

EXAMPLE = Path(__file__).parents[1] / "examples" / "parity.py"
spec = importlib.util.spec_from_file_location("parity", EXAMPLE)
assert spec is not None and spec.loader is not None
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)


def test_strings_ask_for_the_parity_of_all_bits_before():
    tokens, labels = parity.strings(200, 3, 40, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (200, 39)
    lengths = set()
    for row, answer in zip(tokens.tolist(), labels.tolist()):
        (last,) = [t for t, label in enumerate(answer) if label != parity.IGNORED]
        lengths.add(last + 1)
        assert set(row[: last + 1]) <= {1, 2} and not any(row[last + 1 :])
        assert answer[last] == 1 + row.count(2) % 2
    assert min(lengths) == 2 and max(lengths) == 39


@pytest.mark.parametrize("blocks", parity.SLSTM_AT)
def test_a_few_steps_run(blocks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parity.py", "--blocks", blocks, "--steps", "2"])
    shorter = {"training": {"batch_size": 8}, "dataset": {"validation": {"max_sequence_length": 60}}}
    monkeypatch.setattr(parity, "CONFIG", OmegaConf.merge(parity.CONFIG, shorter))
    parity.main()
    assert f"xLSTM[{blocks}]: accuracy" in capsys.readouterr().out


def test_autocast_as_in_the_yaml_file_runs():
    config = parity.read_config(num_steps=2, batch_size=4, enable_mixed_precision=True)
    losses = parity.train(parity.build(config), config)
    assert all(0 < loss < 10 for loss in losses)


@pytest.mark.parametrize("blocks", parity.SLSTM_AT)
def test_training_takes_the_official_steps(blocks, monkeypatch):
    """From the same weights, on the same strings, the official package has the same losses."""
    official = pytest.importorskip("xlstm", reason="the PyPI package xlstm is the oracle (pip install '.[peers]')")
    config = parity.read_config(blocks, num_steps=4, batch_size=8)
    config.model.slstm_block.slstm.backend = "vanilla"
    config.dataset.max_sequence_length = 12
    config.model.context_length = 11
    mine = parity.build(config)
    monkeypatch.setattr(parity, "xLSTMLMModel", official.xLSTMLMModel)
    monkeypatch.setattr(parity, "xLSTMLMModelConfig", official.xLSTMLMModelConfig)
    theirs = parity.build(config)
    theirs.load_state_dict(mine.state_dict())
    assert parity.train(mine, config) == pytest.approx(parity.train(theirs, config), abs=1e-4)
