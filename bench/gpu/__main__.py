"""``python -m bench.gpu check | bench | deep``: the stages of stages.py on this machine's GPU (docs/gpu.md).

--dry-run shows the commands and runs what a machine without a GPU can run of each stage.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..checkout import ROOT
from . import runner
from .stages import Stage, rehearsal_site, stages


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "bench", "deep"))
    parser.add_argument("--out", type=Path, help="results folder; default <gpu>-<hash of the sources> in $OUT or bench/results")
    parser.add_argument("--again", action="store_true", help="also run stages that passed with these sources")
    parser.add_argument("--dry-run", action="store_true", help="show the commands, rehearse them without a GPU")
    options = parser.parse_args(arguments)
    name, architecture = runner.gpu()
    if not name and not options.dry_run:
        print(f"gpu-{options.command}: no GPU (nvidia-smi finds none); --dry-run tries what can be tried without one")
        return 1
    folder = options.out.resolve() if options.out else runner.results_folder("dry-run" if options.dry_run else name)
    plan = stages(options.command, sys.executable, architecture or "90a-real", folder, ROOT)
    if options.dry_run:
        plan = [rehearsed(stage) for stage in plan]
        for stage in plan:
            for line in stage.commands:
                settings = [f"{key}={value}" for key, value in stage.environment.items()]
                print(f"{stage.name} ({stage.seconds} s): {' '.join([*settings, *line])}", flush=True)
    runner.resume(folder)
    passed = runner.run_all(plan, folder, options.dry_run, options.again)
    print(f"results: {runner.archive(folder, options.command)}")
    return not passed


def rehearsed(stage: Stage) -> Stage:
    """The stage in an environment where a rehearsed installation is found."""
    places = [str(rehearsal_site(ROOT)), os.environ.get("PYTHONPATH", "")]
    return replace(stage, environment={**stage.environment, "PYTHONPATH": os.pathsep.join(filter(None, places))})


if __name__ == "__main__":
    raise SystemExit(main())
