"""The measured examples: every claim holds at small size and in the committed results, and the page says what those say."""

from __future__ import annotations

import functools
import itertools
import os
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="pip install matplotlib")
ROOT = Path(__file__).parents[1]
if not (ROOT / "examples/results").is_dir():
    pytest.skip("examples/ is only in a checkout", allow_module_level=True)

from examples import associative_recall, common, page, seasonal_forecast, state_tracking, streaming_forecast  # noqa: E402
from examples.suite import EXPERIMENTS  # noqa: E402

#: Those on text are in test_examples_text.py, so that two processes share them.
SMALL = ("state_tracking", "associative_recall", "variable_length_classification", "streaming_forecast", "seasonal_forecast")


@functools.cache
def quick(name: str) -> common.Results:
    """One seed at small size."""
    return EXPERIMENTS[name].run([0], quick=True)


def check_claims(name: str) -> None:
    """All of them hold in a run at small size; data that is missing is a failure in CI."""
    try:
        results = quick(name)
    except common.MissingData as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    broken = [claim for claim, holds in EXPERIMENTS[name].claims(results).items() if not holds]
    assert not broken, f"{broken}\n{EXPERIMENTS[name].table(results)}"


@pytest.mark.parametrize("name", SMALL)
def test_every_claim_holds_at_small_size(name, tmp_path):
    check_claims(name)
    EXPERIMENTS[name].picture(quick(name), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# ---------------------------------------------------------------- what is committed
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_holds_in_the_committed_results(name):
    results = page.full_results(name)
    assert set(results.contenders) == set(EXPERIMENTS[name].contenders)
    broken = [claim for claim, holds in EXPERIMENTS[name].claims(results).items() if not holds]
    assert not broken, f"{broken}\n{EXPERIMENTS[name].table(results)}"


def test_the_page_is_made_of_the_committed_results():
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "python -m examples --page writes it"
    for name in EXPERIMENTS:
        assert (page.PICTURES / f"{name}.png").stat().st_size > 10_000


def test_a_claim_that_fails_is_said_on_the_page():
    experiment = EXPERIMENTS["state_tracking"]
    swapped = {"sLSTM": "mLSTM, 2 layers", "mLSTM, 2 layers": "sLSTM"}
    results = page.full_results("state_tracking")
    for record in results.records:
        record.contender = swapped.get(record.contender, record.contender)
    assert not any(experiment.claims(results).values())
    assert page.section(experiment, results).count("**Not supported by these results:**") == 3


# ---------------------------------------------------------------- the tasks are what they say
def test_products_are_those_of_the_group():
    elements, products = state_tracking.words(4, 30, torch.Generator().manual_seed(0))
    for word, answers in zip(elements.tolist(), products.tolist()):
        so_far = (0, 1, 2)
        for element, answer in zip(word, answers):
            permutation = state_tracking.ELEMENTS[element]
            so_far = tuple(permutation[so_far[i]] for i in range(3))
            assert state_tracking.ELEMENTS[answer] == so_far
    assert sorted(state_tracking.ELEMENTS) == sorted(itertools.permutations(range(3)))


def test_every_question_has_its_answer_among_the_pairs():
    tokens, values = associative_recall.questions(5, 6, torch.Generator().manual_seed(0))
    for row, wanted in zip(tokens.tolist(), values.tolist()):
        pairs = dict(zip(row[:12:2], row[1:12:2]))
        assert len(pairs) == 6 and [pairs[key] for key in row[12:]] == wanted


def test_glucose_is_forecast_from_the_past_alone():
    """What comes later changes no forecast, and the target is the change of the sensor's value."""
    values = torch.tensor([100.0, 110, 90, 95] * 10)
    later = torch.cat([values[:20], values[20:] + 50])
    assert torch.equal(streaming_forecast.inputs(values)[:20], streaming_forecast.inputs(later)[:20])
    assert streaming_forecast.changes(values)[1].tolist() == [values[7] - values[1], values[13] - values[1]]


def test_electricity_is_forecast_from_the_past_alone():
    try:
        data = seasonal_forecast.series()
    except common.MissingData as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    inputs, target = data["inputs"], data["target"]
    assert len(inputs) == len(target) == len(data["linear"])
    change = inputs[:, 0] / 3  # of the last half hour that is known
    for place in (0, 100, len(target) - seasonal_forecast.DAY - 1):
        torch.testing.assert_close(target[place], change[place + 1 : place + 1 + seasonal_forecast.DAY])
    assert data["trained"] + seasonal_forecast.DAY - 1 == data["test"], "no half hour of the test is in a training target"


# ---------------------------------------------------------------- commands and errors
def test_missing_data_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(common.MissingData, match=r"sktime/data\.ts is not installed, .*pip install sktime"):
        common.data_file("sktime", "sktime", "data.ts")
    seasonal_forecast.series.cache_clear()
    monkeypatch.setattr("sys.argv", ["seasonal_forecast", "--quick"])
    with pytest.raises(SystemExit, match=r"seasonal_forecast: .*pip install pmdarima"):
        EXPERIMENTS["seasonal_forecast"].main()
    seasonal_forecast.series.cache_clear()


def test_an_example_prints_table_claims_and_picture(monkeypatch, capsys, tmp_path):
    experiment = EXPERIMENTS["state_tracking"]
    measure = lambda *_: {"parameters": 7, "accuracy": [1.0, 0.5], "at 32": 0.5, "at the end": 0.25}  # noqa: E731
    monkeypatch.setattr("sys.argv", ["state_tracking", "--seeds", "2", "--out", str(tmp_path)])
    common.Experiment(**{**experiment.__dict__, "measure": measure}).main()
    out = capsys.readouterr().out
    assert "| sLSTM | 7 | 0.500 | 0.250 | 0 | 2 |" in out
    assert "DOES NOT HOLD: The sLSTM" in out and re.search(r"holds: mLSTM", out)
    assert (tmp_path / "state_tracking.png").exists()


def test_seeds_that_were_measured_before_stay_in_the_results(tmp_path):
    experiment = common.Experiment(**{**EXPERIMENTS["state_tracking"].__dict__, "measure": lambda *_: {"parameters": 1}})
    path = tmp_path / "results.jsonl"
    experiment.run([0], quick=False, path=path)
    experiment.run([1], quick=False, path=path)
    assert {(record.contender, record.seed) for record in common.load(path)} == set(
        itertools.product(experiment.contenders, [0, 1])
    )
