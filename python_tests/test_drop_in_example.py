"""examples/drop_in.py runs, and the sLSTM in nn.LSTM's place learns what it is shown."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "drop_in.py"
spec = importlib.util.spec_from_file_location("drop_in", EXAMPLE)
assert spec is not None and spec.loader is not None
drop_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(drop_in)


def test_drop_in_learns_short_parity():
    assert drop_in.train("sLSTM", steps=80, length=6) > 0.95


@pytest.mark.parametrize("layer", ["LSTM", "sLSTM", "mLSTM"])
def test_drop_in_prints_the_accuracy(layer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["drop_in.py", "--layer", layer, "--steps", "2", "--length", "5"])
    drop_in.main()
    assert f"{layer}: accuracy" in capsys.readouterr().out
