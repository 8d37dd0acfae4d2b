"""`python -m examples`: runs the measured examples with all their seeds and writes docs/examples.md with its pictures.

python -m examples                            everything (`make examples`)
python -m examples state_tracking --seeds 1   one of them, one seed; what other seeds gave before stays in the page
python -m examples --page                     only the page and the pictures, from the results in examples/results
"""

from __future__ import annotations

import argparse

import torch

from . import page
from .common import ROOT, MissingData
from .suite import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], help="which examples; all of them without a name")
    parser.add_argument("--seeds", type=int, help="how many seeds (default: as many as each example asks for)")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for name in () if arguments.page else arguments.names or EXPERIMENTS:
            experiment = EXPERIMENTS[name]
            results = experiment.run(range(arguments.seeds or experiment.seeds), quick=False, path=page.results_file(name))
            print(experiment.table(results), end="\n\n")
        page.write()
    except MissingData as error:
        raise SystemExit(f'{error}\n(all data of the examples: pip install -c constraints-cpu.txt ".[examples]")') from None
    print(f"{page.PAGE.relative_to(ROOT)} is up to date")


if __name__ == "__main__":
    main()
