"""``python -m bench``: how much faster than what users have today, on this machine, now."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from . import busy, kernels, memory, peers, plots, profile, records, table
from .compare import report as comparison
from .contenders import Case
from .environment import environment, title
from .measure import measure
from .progress import Progress
from .suites import SUITES
from .timing import keep_freed_memory

DEFAULT_OUT = Path(__file__).parent / "results" / "local"
SECONDS = {True: 1.5, False: 6.0}  #: of samples per case, by quick


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "suite",
        nargs="?",
        default="all",
        choices=[*SUITES, "all", "profile", "kernels", "busy"],
        help="default: all; profile, kernels and busy measure the CPU alone",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few shapes and short samples: all suites in 3 minutes on a CPU")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of results.jsonl and plots; default %(default)s")
    parser.add_argument("--compare", type=Path, metavar="OLD.jsonl", help="afterwards show what got slower since that file")
    parser.add_argument("--threads", type=int, help="threads of PyTorch and of the CPU backend")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="start no further case after this")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        old = records.load(options.compare) if options.compare else []
    except records.NotOurResults as error:
        print(f"--compare: {error}", file=sys.stderr)
        return 2
    if options.suite == "profile":
        profile.main(options.out)
        return 0
    if options.suite == "kernels":
        kernels.main(options.out, options.quick)
        return 0
    if options.suite == "busy":
        busy.main(options.out, options.quick)
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: PyTorch sees no CUDA device", file=sys.stderr)
        return 2
    keep_freed_memory()
    print(title(environment()))
    print("peers:\n  " + "\n  ".join(peers.report()) + "\n", flush=True)

    path = options.out / records.FILE
    names = list(SUITES) if options.suite == "all" else [options.suite]
    cases = [case for name in names for case in SUITES[name](device, options.quick)]
    found, red = run(cases, device, options, path)
    print(f"{len(found)} records in {path}")
    for picture in plots.draw(records.load(path) if found else [], options.out):
        print(f"plot {picture}")
    if old:
        print("\n" + comparison(old, found))
    return 1 if any(not peers.is_peer(name) for name in red) else 0


def run(
    cases: list[Case], device: torch.device, options: argparse.Namespace, path: Path
) -> tuple[list[records.Record], list[str]]:
    """The records of all cases, printed and saved as they come, and the contenders with a red gate."""
    progress, found, red, timed = Progress(len(cases)), [], [], []
    for number, case in enumerate(cases):
        if time.monotonic() - progress.started > options.budget:
            print(f"--budget: {len(cases) - number} of {len(cases)} cases were not started, from {case.suite}: {case.name} on\n")
            break
        progress.start(f"{case.suite}: {case.name}")
        outcome = measure(case, device, SECONDS[options.quick], progress.show)
        progress.finish()
        print(table.cases(outcome) + "\n", flush=True)
        found += outcome.records
        red += outcome.red
        timed.append(case)
        records.save(path, outcome.records)
    if weighed := [case for case in timed if case.measures_memory]:
        peaks = memory.records_of(weighed, found, device, options.quick, progress.show)
        print(table.peaks(peaks) + "\n", flush=True)
        found += peaks
        records.save(path, peaks)
    return found, red


if __name__ == "__main__":
    raise SystemExit(main())
