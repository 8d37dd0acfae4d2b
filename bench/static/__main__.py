"""``python -m bench.static``: brings bench/results/static up to date; only what changed is compiled again.

Needs nvcc, cuobjdump and nvdisasm for the compiler's figures, and an installed package with XLSTM_SIMT=ON, built from these
sources, for the executor's. Fails on a compiler warning or error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from xlstm_cuda import backends

from . import compiler, executor, sources, tables


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.static", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", action="append", help="only this architecture, such as 90a; may be repeated")
    parser.add_argument("--files", default="", help="only kernel files whose path contains this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=tables.FOLDER)
    parser.add_argument("--compile-only", action="store_true", help="leave the host executor's figures as they are")
    options = parser.parse_args(arguments)
    problems = compile_all(options) + ([] if options.compile_only else count_all(options))
    results = tables.load(options.out)
    print(tables.markdown(results))
    problems += [violation for violation in tables.violations(results) if violation not in problems]
    for problem in problems:
        print(f"PROBLEM {problem}", file=sys.stderr)
    return bool(problems)


def compile_all(options: argparse.Namespace) -> list[str]:
    """Compiles what is missing or stale; what is wrong with any unit."""
    nvcc = compiler.find_nvcc()
    cuobjdump, version, started = compiler.find_cuobjdump(), compiler.nvcc_version(nvcc), time.monotonic()
    results = tables.load(options.out)
    if results["nvcc"] != version:
        results |= {"nvcc": version, "units": {}}
    files = [file for file in sources.kernel_files() if options.files in file]
    wanted = [(file, arch) for arch in options.arch or compiler.ARCHITECTURES for file in files]
    results["units"] = {name: unit for name, unit in results["units"].items() if name.split("|")[0] in sources.kernel_files()}
    stale = [(f, a) for f, a in wanted if results["units"].get(f"{f}|{a}", {}).get("key") != sources.key(f)]
    print(f"{len(wanted)} units, {len(wanted) - len(stale)} up to date, {len(stale)} to compile", flush=True)
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(compiler.compile_one, nvcc, cuobjdump, f, a, Path(work)): f"{f}|{a}" for f, a in stale}
        for number, job in enumerate(as_completed(jobs), 1):
            unit = job.result()
            results["units"][jobs[job]] = unit
            tables.save(options.out, results)  # an interrupted run goes on where it stopped
            spent = time.monotonic() - started
            print(f"[{number}/{len(stale)}] {spent:4.0f} s  {jobs[job]}: {len(unit['kernels'])} kernels", flush=True)
    tables.save(options.out, results)
    if len(stale) == len(wanted):  # what cmake/build_plan.py calls KERNEL_SECONDS
        print("CPU seconds of nvcc, without the self-tests: " + ", ".join(seconds(results["units"], options.arch)))
    names = [f"{file}|{arch}" for file, arch in wanted]
    return [f"{name}: {problem}" for name in names for problem in results["units"][name]["problems"]]


def seconds(units: dict[str, Any], architectures: list[str] | None) -> list[str]:
    """The sums over the kernel files of the package, for each architecture."""
    files = [file for file in sources.kernel_files() if "/selftest/" not in file]
    return [
        f"{one} {sum(units.get(f'{file}|{one}', {}).get('seconds', 0) for file in files):.0f}"
        for one in architectures or compiler.ARCHITECTURES
    ]


def count_all(options: argparse.Namespace) -> list[str]:
    """Runs the kernels on the host executor where the figures are stale."""
    results = tables.load(options.out)
    if results["executor"]["key"] == sources.executor_key():
        print("host executor: up to date")
        return []
    if not (found := backends()["simt"]):
        print(f"host executor: figures stay as they are: {found.reason}")
        return []
    results["executor"] = {"key": sources.executor_key(), "launches": executor.launches(lambda text: print(text, flush=True))}
    tables.save(options.out, results)
    return []


if __name__ == "__main__":
    raise SystemExit(main())
