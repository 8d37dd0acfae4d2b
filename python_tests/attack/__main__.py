"""An outside attack on functional.mlstm, mlstm_step, slstm and slstm_step: random cases against truths that share no code with the package.

    python python_tests/attack --cases 10000 --seed 1       the cross product of layouts, dtypes, states, borders, extreme gates
    python python_tests/attack --seed 1 --only 4711         one case again, with every error

Truth: float64 (longdouble for float64 cases) in another form than any backend computes, `mlstm_truth.py` and `slstm_truth.py`, with
gradients derived by hand. Allowance: the formulas of python_tests/tolerances.py. Every number of the mLSTM, results and gradients,
has u b, b the sum of its terms' absolute values; conditioned cases keep the root-mean-square tolerances besides, as the sLSTM always does.
Some cases also check two bitwise promises: a row alone equals its batch, a split at a border equals the whole.

Prints per group of op, dtype and backend: cases, failures, the largest error over its allowance, and what was left out with the reason.
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


def _negated(case: cases.Case) -> bool:
    return any(x.is_neg() for x in (*case.operands.values(), *(case.state or {}).values()))


KNOWN = (
    Known(
        "steps do not see that an operand is a lazily negated view",
        lambda case: case.op.endswith("_step") and case.backend in ("cpu", "simt") and _negated(case),
    ),
    Known(
        "cpu mLSTM: torch.bmm rounds by batch count, so a row alone or a split may differ in last bits",
        lambda case: case.op == "mlstm" and case.backend == "cpu",
        names=("row alone", "split"),
    ),
    Known(
        "cpu mLSTM in float64: differences of sums of forget gates cancel",
        lambda case: case.op.startswith("mlstm") and case.backend == "cpu" and case.dtype == "float64",
        at_most=1e4,
    ),
)


class Group:
    """What happened to the cases of one op, dtype and backend."""

    def __init__(self) -> None:
        self.cases = self.failures = self.known = 0
        self.worst, self.worst_name, self.worst_case = 0.0, "", -1
        self.seconds = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--show", type=int, default=20, help="how many failing cases are printed")
    parser.add_argument("--minutes", type=float, help="stop after so many; fails, because cases are missing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory with NaN
    np.seterr(all="ignore")
    found = xlstm_cuda.backends()
    backends = tuple(b for b in ("cpu", "simt", "reference") if found[b])
    if "simt" not in backends:
        print(f"simt is left out: {found['simt'].reason}", file=sys.stderr)
        return 1
    if arguments.only is not None:
        return one(arguments.seed, arguments.only, backends)

    started, groups, bits = time.monotonic(), defaultdict(Group), defaultdict(Counter)
    left_out: Counter[str] = Counter()
    known: Counter[str] = Counter()
    known_worst: dict[str, float] = defaultdict(float)
    regimes: Counter[str] = Counter()
    failed, ran = 0, 0
    for index in range(arguments.first, arguments.first + arguments.cases):
        if arguments.minutes and time.monotonic() - started > arguments.minutes * 60:
            break
        ran += 1
        begun = time.monotonic()
        case = cases.draw(arguments.seed, index, backends)
        failures: dict[str, object] = {}
        group = groups[case.group]
        try:
            verdict, broken = examine(case)
        except Exception as error:
            verdict, broken = compare.Verdict(), []
            failures = {"raised": f"{type(error).__name__}: {error}"}
        failures |= {name: f"{ratio:.3g}" for name, ratio in verdict.failures.items()}
        for promise, kept in broken:
            bits[(promise, case.op, case.backend)][kept] += 1
            if not kept:
                failures[promise] = "other bits"
        group.cases += 1
        group.seconds += time.monotonic() - begun
        left_out.update(verdict.notes)
        reason = why_known(case, failures, verdict.worst) if failures else None
        if verdict.worst > group.worst and not reason:
            group.worst, group.worst_case = verdict.worst, index
            group.worst_name = max(verdict.ratios, key=lambda name: _number(verdict.ratios[name]))
        if reason:
            group.known += 1
            known[reason] += 1
            known_worst[reason] = max(known_worst[reason], verdict.worst)
        elif failures:
            group.failures += 1
            failed += 1
            regimes[case.regime] += 1
            if failed <= arguments.show:
                print(
                    f"FAILED  python python_tests/attack --seed {case.seed} --only {index}   {failures}\n        {case}",
                    flush=True,
                )
        if ran % 1000 == 0:
            print(f"{ran} cases, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)

    report(groups, bits, left_out, regimes)
    for reason, count in known.items():
        print(f"known: {reason}: {count} cases, at worst {known_worst[reason]:.3g} of the allowance")
    missing = arguments.cases - ran
    print(
        f"{failed} failures and {sum(known.values())} known ones in {ran} cases, seed {arguments.seed}, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    if missing:
        print(f"{missing} cases did not run in {arguments.minutes} minutes")
    return 1 if failed or missing else 0


def why_known(case: cases.Case, failures: dict[str, object], worst: float) -> str | None:
    """The known defect that explains every failure of the case, or None."""
    for defect in KNOWN:
        explained = not defect.names or failures.keys() <= set(defect.names)
        if defect.applies(case) and explained and worst <= defect.at_most and "raised" not in failures:
            return defect.why
    return None


def _number(ratio: float) -> float:
    return ratio if ratio == ratio else float("inf")


def examine(case: cases.Case) -> tuple[compare.Verdict, list[tuple[str, bool]]]:
    """The verdict on the numbers, and the bitwise promises that were checked and whether they were kept."""
    verdict = compare.judge(case)
    if case.index % BITS_EVERY or case.backend == "reference":
        return verdict, []
    return verdict, list(compare.judge_bits(case).items())


def one(seed: int, index: int, backends: tuple[str, ...]) -> int:
    case = cases.draw(seed, index, backends)
    print(case)
    verdict, broken = examine(case)
    for name, ratio in verdict.ratios.items():
        print(f"  {name:12} {ratio:10.3g} of its allowance{'' if ratio <= 1 else '   FAILED'}")
    for promise, kept in broken:
        print(f"  {promise:12} {'the same bits' if kept else 'other bits   FAILED'}")
    for note in verdict.notes:
        print(f"  left out: {note}")
    return 1 if verdict.failures or not all(kept for _, kept in broken) else 0


def report(groups: dict, bits: dict, left_out: Counter[str], regimes: Counter[str]) -> None:
    print(
        f"\n{'op':11} {'dtype':9} {'backend':10} {'cases':>6} {'failures':>8} {'known':>6}  {'largest error / allowance':26} {'ms each':>7}"
    )
    for key in sorted(groups):
        g = groups[key]
        worst = f"{g.worst:.2g} ({g.worst_name}, case {g.worst_case})" if g.worst_case >= 0 else "0"
        print(
            f"{key[0]:11} {key[1]:9} {key[2]:10} {g.cases:6} {g.failures:8} {g.known:6}  {worst:26} {g.seconds / g.cases * 1e3:7.1f}"
        )
    for (promise, op, backend), counts in sorted(bits.items()):
        print(f"bits: {promise:10} {op:11} {backend:10} {counts.total():6} {counts[False]:8}")
    for note, count in sorted(left_out.items()):
        print(f"left out: {note}: {count}")
    for regime, count in sorted(regimes.items()):
        if count:
            print(f"failures with gates {regime}: {count}")


if __name__ == "__main__":
    raise SystemExit(main())
