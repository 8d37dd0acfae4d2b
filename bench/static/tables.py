"""The committed table: JSON with everything, Markdown for people, and the thresholds that a test holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .sources import ROOT, executor_key, kernel_files, key

FOLDER = ROOT / "bench/results/static"
FILE, PAGE = "kernels.json", "kernels.md"
REFRESH = "make static-report (nvcc, cuobjdump; the package installed with XLSTM_SIMT=ON from these sources)"
LARGEST_SHARED = 99 * 1024
LARGEST_BYTES = 1.10
TENSOR_CORES = re.compile(r"(walk|resident|cluster|grid|split)\w*(<|::).*(bfloat16|half)")  # 16-bit walks and recurrences
EMPTY = 16  #: registers of a kernel whose tile the architecture does not use, and whose body is left out


def load(folder: Path = FOLDER) -> dict[str, Any]:
    path = folder / FILE
    if path.exists():
        return json.loads(path.read_text())
    return {"nvcc": "", "units": {}, "executor": {"key": "", "launches": []}}


def save(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {**results, "units": dict(sorted(results["units"].items()))}
    (folder / FILE).write_text(json.dumps(ordered, indent=1) + "\n")
    (folder / PAGE).write_text(markdown(ordered))


def violations(results: dict[str, Any]) -> list[str]:
    """What is over a threshold."""
    found = []
    for unit, record in results["units"].items():
        found += [f"{unit}: {problem}" for problem in record["problems"]]
        for kernel in record["kernels"]:
            where = f"{unit}: {kernel['name']}"
            if kernel["spill_bytes"]:
                found.append(f"{where}: {kernel['spill_bytes']} bytes spilled")
            no_products = kernel["hmma"] == 0 and kernel["hgmma"] == 0
            if TENSOR_CORES.search(kernel["name"]) and no_products and kernel["registers"] > EMPTY:
                found.append(f"{where}: no tensor-core instruction")
    for launch in results["executor"]["launches"]:
        where = f"{launch['case']}: {launch['kernel']}"
        if launch["shared_bytes"] > LARGEST_SHARED:
            found.append(f"{where}: {launch['shared_bytes']} bytes of shared memory, at most {LARGEST_SHARED}")
        if (launch["bytes_over_least"] or 0) > LARGEST_BYTES:
            found.append(f"{where}: moves {launch['bytes_over_least']} times the least bytes, at most {LARGEST_BYTES}")
    return found


def stale(results: dict[str, Any]) -> list[str]:
    """What is missing, or was measured on other sources."""
    architectures = {name.split("|")[1] for name in results["units"]} or {"90a"}
    found = []
    for file in kernel_files():
        for architecture in sorted(architectures):
            unit = results["units"].get(f"{file}|{architecture}")
            if unit is None:
                found.append(f"{file} for {architecture} is missing")
            elif unit["key"] != key(file):
                found.append(f"{file} for {architecture} is of other sources")
    if results["executor"]["key"] != executor_key():
        found.append("the host executor's figures are of other sources")
    return found


def markdown(results: dict[str, Any]) -> str:
    """A row a kernel and architecture, then a row a launch."""
    lines = [
        "# Every kernel, without a GPU",
        "",
        "Written by `make static-report`; `python_tests/test_bench_static.py` holds its thresholds: no spills, tensor-core"
        f" instructions in 16-bit walks and recurrences, at most {LARGEST_SHARED // 1024} KB of shared memory, at most"
        f" {LARGEST_BYTES:.2f} times the least bytes.",
        "",
        f"## The compiler (nvcc {results['nvcc']})",
        "",
        "| file | architecture | kernel | registers | spilled B | stack B | static shared B | HMMA | HGMMA | FFMA |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for unit, record in sorted(results["units"].items()):
        file, architecture = unit.split("|")
        if "selftest" in file:
            continue
        for k in record["kernels"]:
            figures = [k[name] for name in ("registers", "spill_bytes", "stack", "shared")]
            figures += [counted(k[name]) for name in ("hmma", "hgmma", "ffma")]
            lines.append(f"| {file.removeprefix('csrc/')} | {architecture} | `{k['name']}` | {' | '.join(map(str, figures))} |")
    lines += [
        "",
        "## The host executor (one training call and one step, bfloat16, NH = 1, B = 1 or for the sLSTM 8, limits of sm_86)",
        "",
        "| call | kernel | grid | block | shared B | mma | barriers | read KB | written KB | over the least | sectors a request |"
        " conflicts |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in results["executor"]["launches"]:
        over = "" if one["bytes_over_least"] is None else f"{one['bytes_over_least']:.2f}"
        grid, block = ("x".join(map(str, one[name])) for name in ("grid", "block"))
        lines.append(
            f"| {one['case']} | `{one['kernel']}` | {grid} | {block} | {one['shared_bytes']} | {one['mma']} |"
            f" {one['block_barriers']} | {one['global_bytes_read'] / 1024:.0f} | {one['global_bytes_written'] / 1024:.0f} |"
            f" {over} | {one['sectors_per_request']:.2f} | {one['bank_conflict_factor']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def counted(value: int) -> str:
    return "" if value < 0 else str(value)
