"""Digests of every op's results and gradients over a fixed grid: the proof that a change of form changed no bit.

    python python_tests/digests.py cpu --write before.json     on the commit before
    python python_tests/digests.py cpu --against before.json   after the change: names what differs
    python python_tests/digests.py simt --record               the file that test_digests.py compares with

Bits of backend simt do not depend on the CPU: its kernels round as they are written. Not recorded are dR, which PyTorch's matmul
sums in an order of its own, and backend cpu, whose bits are those of an instruction set: compare those before and after.
Operands are multiples of 1/256 from integers, because PyTorch's normal numbers differ between CPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlstm_cuda import functional, native
from xlstm_cuda.ops import mlstm_kernels, slstm_kernels

RECORDED = Path(__file__).with_name("digests_simt.json")
OF_THE_CPU = ("dR",)  #: results that are not recorded

Results = dict[str, Tensor]


def digest(x: Tensor) -> str:
    """Of shape, dtype and bits; every NaN is the same NaN."""
    x = x.detach().cpu().contiguous()
    x = torch.where(x.isnan(), torch.nan, x)
    integers = x.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])
    head = f"{tuple(x.shape)} {x.dtype}".encode()
    return hashlib.sha256(head + integers.numpy().tobytes()).hexdigest()[:16]


class Numbers:
    """A stream of exact operands: multiples of 1/256 between -2 and 2."""

    def __init__(self, seed: int = 0):
        self.integers = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.integers.integers(-512, 513, shape)).double() / 256


def mlstm(
    backend: str, dtype: torch.dtype, S: int, DHQK: int, DHHV: int, *,
    B: int = 2, NH: int = 2, state: bool = True, lengths: tuple[int, ...] | None = None,
    extreme: bool = False, segments: int | None = None, **options: Any,
) -> Results:  # fmt: skip
    """One forward and backward with a loss on h, C and n."""
    numbers = Numbers()
    B, N = (1, len(lengths)) if lengths else (B, B)
    operands = [numbers(B, S, NH, D) for D in (DHQK, DHQK, DHHV)] + [numbers(B, S, NH), numbers(B, S, NH) + 3]
    if extreme:
        operands[3][:, ::5] = -torch.inf
        operands[3][:, 1::9] += 40
        operands[4][:, ::7] = -1e4
        operands[4][:, 5:6] = -torch.inf
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    initial = [numbers(N, NH, DHQK, DHHV), numbers(N, NH, DHQK), numbers(N, NH)] if state else []
    leaves = [x.to(dtype).requires_grad_() for x in operands] + [x.to(wide).requires_grad_() for x in initial]
    borders = None if lengths is None else torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    cut = mlstm_kernels.forced_segments(segments) if segments else contextlib.nullcontext()
    with cut:
        h, last = functional.mlstm(
            *leaves[:5], state=tuple(leaves[5:]) or None, return_state=True, cu_seqlens=borders, backend=backend, **options
        )
        incoming = [numbers(*x.shape).to(x.dtype) for x in (h, last.C, last.n)]
        gradients = torch.autograd.grad((h, last.C, last.n), leaves, incoming)
    names = ("dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")
    return {"h": h, "C": last.C, "n": last.n, "m": last.m, **dict(zip(names, gradients))}


def mlstm_step(backend: str, dtype: torch.dtype, DHQK: int, DHHV: int, **options: Any) -> Results:
    """Two tokens by the decode path."""
    numbers, B, NH = Numbers(), 3, 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    state: Any = tuple(x.to(wide) for x in (numbers(B, NH, DHQK, DHHV), numbers(B, NH, DHQK), numbers(B, NH)))
    results = {}
    for token in range(2):
        operands = [numbers(B, NH, D).to(dtype) for D in (DHQK, DHQK, DHHV)]
        gates = [numbers(B, NH).to(dtype) for _ in range(2)]
        results[f"h{token}"], state = functional.mlstm_step(*operands, *gates, state, backend=backend, **options)
    return results | dict(zip("Cnm", state))


def slstm(
    backend: str, dtype: torch.dtype, S: int, DH: int, *,
    B: int = 3, NH: int = 2, state: bool = True, bias: bool = True, lengths: tuple[int, ...] | None = None, resets: bool = False,
    kernel: str | None = None, **options: Any,
) -> Results:  # fmt: skip
    """One forward and backward with a loss on h and on the final h, c and n."""
    numbers = Numbers()
    B, N = (1, len(lengths)) if lengths else (B, B)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {"x": numbers(B, S, 4, NH, DH).to(dtype), "R": (numbers(4, NH, DH, DH) / 2 ** (DH.bit_length() // 2)).to(dtype)}
    if bias:
        leaves["b"] = numbers(4, NH, DH).to(dtype)
    if state:
        h0, c0, n0, m0 = (numbers(N, NH, DH).to(wide) for _ in range(4))
        leaves |= {"h0": h0, "c0": c0, "n0": n0.abs() + 1, "m0": m0}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    if resets:
        options["reset"] = (numbers(B, S) > 1.5).bool()
    if lengths:
        options["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    initial = tuple(leaves[name] for name in ("h0", "c0", "n0", "m0")) if state else None
    with slstm_kernels.forced_kernel(kernel) if kernel else contextlib.nullcontext():
        h, last = functional.slstm(
            leaves["x"], leaves["R"], leaves.get("b"), state=initial, return_state=True, backend=backend, **options
        )
        outputs = (h, last.h, last.c, last.n)
        incoming = [numbers(*x.shape).to(x.dtype) for x in outputs]
        gradients = torch.autograd.grad(outputs, list(leaves.values()), incoming)
    results = dict(zip(("h", "h_last", "c_last", "n_last", "m_last"), (h, *last)))
    return results | {f"d{name}": gradient for name, gradient in zip(leaves, gradients)}


def slstm_step(backend: str, dtype: torch.dtype, DH: int, **options: Any) -> Results:
    """Two tokens by the decode path."""
    numbers, B, NH = Numbers(), 3, 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    R, b = (numbers(4, NH, DH, DH) / 16).to(dtype), numbers(4, NH, DH).to(dtype)
    h0, c0, n0, m0 = (numbers(B, NH, DH).to(wide) for _ in range(4))
    state: Any = (h0, c0, n0.abs() + 1, m0)
    results = {}
    for token in range(2):
        results[f"h{token}"], state = functional.slstm_step(
            numbers(B, 4, NH, DH).to(dtype), R, b, state, backend=backend, **options
        )
    return results | dict(zip("hcnm", state))


F32, BF16, FP16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def grid(backend: str) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Names and computations. Every kernel, every tile and every option of either cell occurs."""

    def case(function: Callable[..., Results], *args: Any, **kwargs: Any) -> tuple[str, Callable[[], Results]]:
        shown = [str(a).removeprefix("torch.") for a in args] + [f"{k}={v}" for k, v in kwargs.items()]
        return f"{function.__name__}({', '.join(shown)})", lambda: function(backend, *args, **kwargs)

    kernels = backend != "cpu"
    for dtype in (F32, BF16, FP16) if kernels else (F32, BF16, F64):
        yield case(mlstm, dtype, 70, 16, 24)
        yield case(mlstm, dtype, 3, 5, 11, state=False)
        yield case(mlstm, dtype, 67, 8, 8, lengths=(3, 0, 40, 24))
        yield case(mlstm_step, dtype, 16, 24)
        yield case(slstm, dtype, 5, 16)
        yield case(slstm, dtype, 7, 6, lengths=(2, 0, 5))
        yield case(slstm_step, dtype, 16)
    yield case(mlstm, F32, 130, 8, 16, B=1, extreme=True)
    yield case(mlstm, F32, 40, 16, 16, igate="sigmoid")
    yield case(mlstm, F32, 40, 16, 16, igate="sigmoid", normalize=False, scale=0.5)
    yield case(mlstm, F32, 40, 16, 16, normalizer_grad="detached", eps=1e-3)
    yield case(mlstm_step, F32, 8, 40, igate="sigmoid", normalize=False)
    yield case(slstm, F32, 9, 8, resets=True, bias=False, forget_gate="exp")
    yield case(slstm, F32, 9, 8, checkpoint_every=4, state=False)
    yield case(slstm_step, F32, 40, forget_gate="exp")
    if not kernels:
        yield case(mlstm, F32, 200, 16, 16, chunk_size=32)
        return
    for dtype in (BF16, FP16):
        for DHQK, DHHV in ((64, 64), (128, 72), (200, 256), (264, 40)):
            yield case(mlstm, dtype, 66, DHQK, DHHV, B=1, NH=1)
    for S in (0, 1, 16, 64, 65, 129):
        yield case(mlstm, BF16, S, 8, 8, extreme=S > 16)
    yield case(mlstm, BF16, 300, 16, 16, B=1, NH=1, segments=2)
    yield case(mlstm, F32, 130, 8, 8, B=1, NH=1, segments=2)
    for dtype, DH in ((F32, 32), (F32, 64), (F32, 96), (BF16, 64), (FP16, 96), (BF16, 128)):
        yield case(slstm, dtype, 3, DH, B=2, NH=1)
    for dtype, DH, kernel in ((BF16, 72, "cluster"), (FP16, 520, "cluster"), (FP16, 72, "grid"), (F32, 72, "grid")):
        yield case(slstm, dtype, 3, DH, B=2, NH=1, kernel=kernel)


def digests(backend: str) -> dict[str, dict[str, str]]:
    """The digest of every result, by the name of its case."""
    torch.set_num_threads(1)
    return {name: {result: digest(x) for result, x in run().items()} for name, run in grid(backend)}


def recordable(all_of_them: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {case: {k: v for k, v in results.items() if k not in OF_THE_CPU} for case, results in all_of_them.items()}


def differences(got: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]) -> list[str]:
    """A line for every case that differs: which of its results have other bits."""
    lines = [f"{case}: only {where}" for case in got.keys() ^ expected.keys() for where in ["now" if case in got else "before"]]
    for case in got.keys() & expected.keys():
        names = [n for n in {**got[case], **expected[case]} if got[case].get(n) != expected[case].get(n)]
        if names:
            lines.append(f"{case}: {', '.join(names)}")
    return sorted(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("cpu", "simt", "cuda"))
    parser.add_argument("--isa", default="", help="of backend cpu: baseline, avx2 or avx512")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, help="a file for --against")
    action.add_argument("--against", type=Path, help="a file of --write")
    action.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    options = parser.parse_args()
    native._C.select_cpu_isa(options.isa)
    found = digests(options.backend)
    if options.against:
        lines = differences(found, json.loads(options.against.read_text()))
        print("\n".join(lines) or f"{sum(map(len, found.values()))} results of {len(found)} cases have the same bits")
        return bool(lines)
    to = RECORDED if options.record else options.write
    to.write_text(json.dumps(recordable(found) if options.record else found, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
