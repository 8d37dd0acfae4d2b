"""An outside attack on functional.mlstm, mlstm_step, slstm and slstm_step, with truths that share no code with the package.

    python python_tests/attack --cases 10000 --seed 1     layouts, dtypes, states, borders and extreme gates at random
    python python_tests/attack --seed 1 --only 4711       one case again, with every error

Truth: float64 (longdouble for float64 cases) in another form than any backend computes, `mlstm_truth.py` and `slstm_truth.py`,
with gradients derived by hand. Allowance: the formulas of python_tests/tolerances.py. Every number of the mLSTM, results and
gradients, may be off by u b, b the sum of its terms' absolute values; conditioned cases keep the root-mean-square tolerances
besides, as the sLSTM always does. Some cases also check two bitwise promises: a row alone equals its batch, a split at a border
equals the whole.

Prints per group of op, dtype and backend: cases, failures, the largest error over its allowance; and what was left out, and why.
Defects that are known (KNOWN below) are counted apart, with their largest error, and do not fail the run; everything else does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent.parent)]  # tolerances, and the checkout, as in the tests

import cases  # noqa: E402
import compare  # noqa: E402

import xlstm_cuda  # noqa: E402

BITS_EVERY = 4  # of how many cases one also checks the bitwise promises


class Known(NamedTuple):
    """A defect that is known: why, which cases may fail, in which results (any without names), by how much of the allowance."""

    why: str
    applies: Callable[[cases.Case], bool]
    names: tuple[str, ...] = ()
    at_most: float = float("inf")


KNOWN: tuple[Known, ...] = ()  #: a defect that waits for its mend: shown and counted apart; none today


class Outcome(NamedTuple):
    """Of one case: failures by name, the largest error over its allowance and where, promises checked, what was left out."""

    failures: dict[str, str]
    worst: float
    worst_name: str
    promises: dict[str, bool]
    left_out: list[str]

    def known(self, case: cases.Case) -> str | None:
        """The known defect that explains every failure, or None."""
        for defect in KNOWN:
            explained = not defect.names or self.failures.keys() <= set(defect.names)
            if defect.applies(case) and explained and self.worst <= defect.at_most and "raised" not in self.failures:
                return defect.why
        return None


def examine(case: cases.Case) -> Outcome:
    """Runs the case; an exception is a failure too."""
    try:
        verdict = compare.judge(case)
        checks_bits = case.index % BITS_EVERY == 0 and case.backend != "reference"
        promises = compare.judge_bits(case) if checks_bits else {}
    except Exception as error:
        return Outcome({"raised": f"{type(error).__name__}: {error}"}, 0.0, "", {}, [])
    failures = {name: f"{ratio:.3g}" for name, ratio in verdict.failures.items()}
    failures |= {promise: "other bits" for promise, kept in promises.items() if not kept}
    worst_name = max(verdict.ratios, key=lambda name: compare.number(verdict.ratios[name]), default="")
    return Outcome(failures, verdict.worst, worst_name, promises, verdict.notes)


class Group:
    """What happened to the cases of one op, dtype and backend."""

    def __init__(self) -> None:
        self.cases = self.failures = self.known = 0
        self.worst, self.where = 0.0, ""
        self.seconds = 0.0


class Tally:
    """What happened to all cases."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, str, str], Group] = defaultdict(Group)
        self.bits: dict[tuple[str, str, str], Counter[bool]] = defaultdict(Counter)
        self.left_out: Counter[str] = Counter()
        self.regimes: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.known_worst: dict[str, float] = defaultdict(float)
        self.started = time.monotonic()
        self.failed = self.ran = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, case: cases.Case, outcome: Outcome, seconds: float) -> bool:
        """Whether the case failed in a way that is not known."""
        group = self.groups[case.group]
        self.ran += 1
        group.cases += 1
        group.seconds += seconds
        self.left_out.update(outcome.left_out)
        for promise, kept in outcome.promises.items():
            self.bits[(promise, case.op, case.backend)][kept] += 1
        reason = outcome.known(case) if outcome.failures else None
        if reason:
            group.known += 1
            self.known[reason] += 1
            self.known_worst[reason] = max(self.known_worst[reason], outcome.worst)
            return False
        if outcome.worst > group.worst:
            group.worst, group.where = outcome.worst, f"{outcome.worst_name}, case {case.index}"
        if outcome.failures:
            group.failures += 1
            self.failed += 1
            self.regimes[case.regime] += 1
        return bool(outcome.failures)

    def report(self) -> None:
        print(f"\n{'op':11} {'dtype':9} {'backend':10} {'cases':>6} {'failures':>8} {'known':>6}  largest error / allowance")
        for key, g in sorted(self.groups.items()):
            counts = f"{g.cases:6} {g.failures:8} {g.known:6}"
            each = f"{g.seconds / g.cases * 1e3:.0f} ms each"
            print(f"{key[0]:11} {key[1]:9} {key[2]:10} {counts}  {g.worst:<8.2g} {g.where:24} {each}")
        for (promise, op, backend), kept in sorted(self.bits.items()):
            print(f"bits: {promise:10} {op:11} {backend:10} {kept.total():6} {kept[False]:8}")
        for note, count in sorted(self.left_out.items()):
            print(f"left out: {note}: {count}")
        for regime, count in sorted(self.regimes.items()):
            print(f"failures with gates {regime}: {count}")
        for reason, count in self.known.items():
            print(f"known: {reason}: {count} cases, at worst {self.known_worst[reason]:.3g} of the allowance")


def one(case: cases.Case) -> int:
    """Every error of one case."""
    print(case)
    verdict = compare.judge(case)
    for name, ratio in verdict.ratios.items():
        print(f"  {name:12} {ratio:10.3g} of its allowance{'' if ratio <= 1 else '   FAILED'}")
    promises = compare.judge_bits(case) if case.backend != "reference" else {}
    for promise, kept in promises.items():
        print(f"  {promise:12} {'the same bits' if kept else 'other bits   FAILED'}")
    for note in verdict.notes:
        print(f"  left out: {note}")
    return 1 if verdict.failures or not all(promises.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--show", type=int, default=20, help="how many failing cases are printed")
    parser.add_argument("--minutes", type=float, help="stop after so many; the run fails then, because cases are missing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    np.seterr(all="ignore")
    backends = ("cpu", "simt", "reference")
    for backend, found in xlstm_cuda.backends().items():
        if backend in backends and not found:
            print(f"backend {backend} is needed: {found.reason}", file=sys.stderr)
            return 1
    if arguments.only is not None:
        return one(cases.draw(arguments.seed, arguments.only, backends))

    tally = Tally()
    for index in range(arguments.first, arguments.first + arguments.cases):
        if arguments.minutes and tally.seconds > arguments.minutes * 60:
            break
        begun = time.monotonic()
        case = cases.draw(arguments.seed, index, backends)
        outcome = examine(case)
        if tally.add(case, outcome, time.monotonic() - begun) and tally.failed <= arguments.show:
            print(f"FAILED  python python_tests/attack --seed {case.seed} --only {index}   {outcome.failures}")
            print(f"        {case}", flush=True)
        if tally.ran % 1000 == 0:
            print(f"{tally.ran} cases, {tally.failed} failed, {tally.seconds:.0f} s", flush=True)
    tally.report()
    failures = f"{tally.failed} failures and {tally.known.total()} known ones"
    print(f"{failures} in {tally.ran} cases, seed {arguments.seed}, {tally.seconds:.0f} s")
    if missing := arguments.cases - tally.ran:
        print(f"{missing} cases did not run in {arguments.minutes} minutes")
    return 1 if tally.failed or missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
