"""docs/examples.md and its pictures from the results in examples/results. No figure on that page is typed by hand."""

from __future__ import annotations

from pathlib import Path

from . import common
from .common import ROOT, Experiment, Results
from .suite import EXPERIMENTS

RESULTS, PAGE, PICTURES = ROOT / "examples/results", ROOT / "docs/examples.md", ROOT / "docs/examples"
INTRODUCTION = """# Examples that measure

Written by `python -m examples` from the result files in `examples/results`; do not edit it. Each example is one file in
`examples/`, at most five minutes for one seed of everything in its table on a two-core machine. From a clone:

```bash
make examples
```

installs what they need and runs all of them with all their seeds. One alone, with one seed, is
`python -m examples.state_tracking`; `--quick` takes seconds and is what the tests run. Numbers with ± are the mean and the
standard deviation over seeds; "CPU s" is the CPU time of training and measuring one seed on one thread. Every claim
below a table is a line of code that reads the table's results; the tests assert it on these and on small runs of their own.
"""


def results_file(name: str) -> Path:
    return RESULTS / f"{name}.jsonl"


def full_results(name: str) -> Results:
    """What is committed, without trials at small size."""
    return Results(record for record in common.load(results_file(name)) if not record.quick)


def measured() -> dict[str, Results]:
    """The examples in which every contender has a result; others wait until they are complete."""
    found = {name: full_results(name) for name in EXPERIMENTS}
    return {name: results for name, results in found.items() if set(results.contenders) >= set(EXPERIMENTS[name].contenders)}


def render() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *(section(EXPERIMENTS[name], results) for name, results in measured().items())])


def section(experiment: Experiment, results: Results) -> str:
    """What is asked, the table, what it shows, the picture, where and when."""
    claims = experiment.claims(results)
    lines = [f"## {experiment.title}", "", (experiment.about or "").split("\n\npython -m")[0].strip(), ""]
    lines += [f"![{experiment.title}](examples/{experiment.name}.png)", "", experiment.table(results), ""]
    lines += [f"- {claim}." if holds else f"- **Not supported by these results:** {claim}." for claim, holds in claims.items()]
    lines += ["", provenance(experiment, results), ""]
    return "\n".join(lines)


def provenance(experiment: Experiment, results: Results) -> str:
    """Command, commit, machine, versions, time of the latest record."""
    seeds = sorted({record.seed for record in results.records})
    machine = max((record.environment for record in results.records), key=lambda one: one["date"])
    missing = f" ({len(seeds)} of {experiment.seeds} seeds so far)" if len(seeds) < experiment.seeds else ""
    return (
        f"`python -m examples {experiment.name}`{missing}; "
        f"source: [{experiment.name}.py](https://github.com/xlstm-cuda/xlstm_cuda/blob/main/examples/{experiment.name}.py); "
        f"commit {machine['commit']}, {machine['date']}; {machine['processor']}, one thread; torch {machine['torch']}."
    )


def write() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, results in measured().items():
        EXPERIMENTS[name].picture(results, PICTURES / f"{name}.png")
    PAGE.write_text(render(), encoding="utf-8")
