"""Running a case, and how far every number is from the truth in units of what it may be off."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import mlstm_truth
import numpy as np
import slstm_truth
import tolerances
import torch
from cases import DTYPES, Case
from torch import Tensor

from xlstm_cuda import functional

KERNELS = ("simt", "cuda")
STATE_NAMES = {"mlstm": ("C", "n", "m"), "slstm": ("h", "c", "n", "m")}


@dataclass
class Verdict:
    """Of one case: every result's error over its allowance, and what could not be compared."""

    ratios: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # parts left out, with the reason

    @property
    def worst(self) -> float:
        return max(map(number, self.ratios.values()), default=0.0)

    @property
    def failures(self) -> dict[str, float]:
        return {name: r for name, r in self.ratios.items() if not r <= 1}


def number(ratio: float) -> float:
    """The ratio, infinite for a NaN."""
    return ratio if ratio == ratio else float("inf")


def judge(case: Case) -> Verdict:
    """Runs the case and compares every result and gradient with the truth."""
    got = run(case)
    return _judge_mlstm(case, got) if case.op.startswith("mlstm") else _judge_slstm(case, got)


def run(case: Case, rows: slice | None = None) -> dict[str, Tensor]:
    """Results, and gradients as d<name>, by name. rows: only these samples of the batch, without gradients."""
    take = (lambda x: x) if rows is None else (lambda x: x[rows])
    shared = ("R", "b")
    leaves = {name: x.detach() if name in shared else take(x.detach()) for name, x in case.operands.items()}
    kind = case.op.removesuffix("_step")
    states = {f"{name}0": take(x.detach()) for name, x in (case.state or {}).items()}
    wants = case.incoming is not None and rows is None
    if wants:
        leaves, states = ({n: x.requires_grad_() for n, x in group.items()} for group in (leaves, states))
    options = dict(case.options)
    if rows is not None and "reset" in options:
        options["reset"] = options["reset"][rows]
    function = getattr(functional, case.op)
    state = tuple(states.values()) or None
    operands = list(leaves.values())
    if kind == "slstm" and "b" not in leaves:
        operands.append(None)
    if case.op.endswith("step"):
        h, last = function(*operands, state, backend=case.backend, **options)
    else:
        h, last = function(*operands, state=state, return_state=True, backend=case.backend, **options)
    suffix = "" if kind == "mlstm" else "_last"
    results = {"h": h} | {f"{name}{suffix}": x for name, x in zip(STATE_NAMES[kind], last)}
    if wants:
        assert case.incoming is not None
        inputs = leaves | states
        # without a step and without a given state, the state that comes back is a constant
        named = {name: g for name, g in case.incoming.items() if results[name].requires_grad or h.numel()}
        outputs = [results[name] for name in named]
        gradients = torch.autograd.grad(outputs, list(inputs.values()), list(named.values()), materialize_grads=True)
        results |= {f"d{name}": g for name, g in zip(inputs, gradients)}
    return {name: x.detach() for name, x in results.items()}


def widest(*gates: Tensor) -> float:
    """The largest finite |gate|, in units of which float32 rounds exponents."""
    return max((float(g[g.isfinite()].abs().max()) for g in gates if g.isfinite().any()), default=0.0)


def numpy_of(x: Tensor, real: Any) -> np.ndarray:
    return x.detach().resolve_neg().double().numpy().astype(real)


# ---- mLSTM


def _judge_mlstm(case: Case, got: dict[str, Tensor]) -> Verdict:
    dtype = DTYPES[case.dtype]
    exact = dtype == torch.float64
    real = np.longdouble if exact else np.float64
    state_rounding, tiny = (2.0**-53, 2.0**-1022) if exact else (2.0**-24, 2.0**-126)
    rounding = state_rounding if exact else tolerances.ROUNDING[dtype]  # of q's dtype
    in_16_bits = case.backend in KERNELS and case.dtype in ("bfloat16", "float16")
    gates = widest(case.operands["i"], case.operands["f"], *([case.state["m"]] if case.state else []))
    # In float64 sums of gates round too. The definition rounds the exponent log f + m, of the size of the gates, at every step.
    by_step = case.backend == "reference" and not case.op.endswith("step")
    roundings = max(2, case.operands["q"].shape[1]) if by_step else 2
    unit = rounding if in_16_bits else state_rounding * ((64 if exact else 16) + roundings * gates)
    options = mlstm_truth.Options(
        scale=case.options.get("scale", case.operands["q"].shape[-1] ** -0.5),
        sigmoid=case.options.get("igate", "exp") == "sigmoid",
        normalize=case.options.get("normalize", True),
        eps=case.options["eps"],
        exact=case.options.get("normalizer_grad", "exact") == "exact",
        tiny=tiny,
        unit=unit,
        least=tiny,
        least_product=2.0**-24 if in_16_bits and case.dtype == "float16" else tiny,
        unit_m=2 * state_rounding,
        unit_h=0.0 if case.backend == "reference" else rounding,
    )
    of_m = state_rounding * ((64 if exact else 16) + 2 * gates)
    truth = _mlstm_truth(case, options, real)
    if truth.undecided:
        return Verdict(notes=["a denominator on the border of the normal numbers"])
    verdict = Verdict()
    largest = float(torch.finfo(torch.float16 if in_16_bits and case.dtype == "float16" else got["C"].dtype).max)
    if truth.largest > largest / 4:
        return Verdict(notes=["states beyond the dtype"])
    over = truth.largest_backward > largest / 4
    for name, value in got.items():
        if name.startswith("d") and over:
            continue
        true, terms = truth.value[name], truth.terms[name]
        verdict.ratios[name] = _ratio(value, true, terms, unit if name != "m" else of_m)
    if over and case.incoming is not None:
        verdict.notes.append("gradients beyond the dtype")
    if truth.conditioned <= 8 and case.regime == "normal" and gates <= 8 and not over:
        _judge_by_norm(case, got, truth, verdict)
    return verdict


def _ratio(value: Tensor, true: np.ndarray, terms: np.ndarray, unit: float) -> float:
    """The largest error over unit terms + u |true| + the least number of the result's dtype."""
    if value.numel() == 0:
        return 0.0
    info = torch.finfo(value.dtype)
    rounding = info.eps / 2
    floor = {torch.float16: 2.0**-24, torch.float64: 1e-300}.get(value.dtype, 1e-37)
    got = numpy_of(value, true.dtype)
    with np.errstate(all="ignore"):
        ratio = np.abs(got - true) / (unit * terms + rounding * np.abs(true) + floor)
        ratio = np.where(np.abs(true) > 0.99 * float(info.max), 0, ratio)  # no number of this dtype
    return float("inf") if np.isnan(ratio).any() else float(ratio.max())


def _judge_by_norm(case: Case, got: dict[str, Tensor], truth: mlstm_truth.Truth, verdict: Verdict) -> None:
    """Results that are no small rest of large terms keep the root-mean-square tolerances too."""
    dtype = DTYPES[case.dtype]
    for name, value in got.items():
        if name in ("C", "n", "m") or value.numel() == 0 or not value.isfinite().all():
            continue  # what should be finite has been judged number by number
        table = {"h": tolerances.MLSTM_H, "df": tolerances.MLSTM_DF}.get(name, tolerances.MLSTM_GRAD)
        size = np.abs(truth.value[name])
        if name == "df":
            q, k = (numpy_of(case.operands[n], size.dtype) for n in "qk")
            size = size + np.abs((q * truth.value["dq"]).sum(-1)) + np.abs((k * truth.value["dk"]).sum(-1))
        whole = float(np.linalg.norm(size.astype(float).ravel()))
        if name == "dm0" or np.linalg.norm(truth.terms[name].astype(float).ravel()) > 16 * whole:
            continue
        least = 2.0**-25 * value.numel() ** 0.5 if value.dtype == torch.float16 else 0.0  # of numbers below the normal ones
        error = max(0.0, np.linalg.norm((numpy_of(value, size.dtype) - truth.value[name]).astype(float).ravel()) - least)
        allowed = tolerances.for_few(table[dtype], value.numel()) * max(1.0, truth.conditioned / 4)
        verdict.ratios[f"{name} norm"] = float(error / (allowed * whole)) if whole else float(error > 0)


def _mlstm_truth(case: Case, options: mlstm_truth.Options, real: Any) -> mlstm_truth.Truth:
    """Of the whole call, in its shapes."""
    step = case.op.endswith("step")
    operands = [numpy_of(x, real) for x in case.operands.values()]
    if step:
        operands = [x[:, None] for x in operands]
    B, _, NH, D = operands[0].shape
    E = operands[2].shape[-1]
    cu = case.options.get("cu_seqlens")
    N = B if cu is None else len(cu) - 1
    shapes = {"C": (N, NH, D, E), "n": (N, NH, D), "m": (N, NH)}
    state = [numpy_of(x, real) for x in case.state.values()] if case.state else [np.zeros(s, real) for s in shapes.values()]
    incoming = case.incoming or {}
    Gh = numpy_of(incoming["h"], real) if "h" in incoming else np.zeros(case.operands["v"].shape, real)
    if step:
        Gh = Gh[:, None]
    G = [numpy_of(incoming[n], real) if n in incoming else np.zeros(shapes[n], real) for n in "Cn"]
    spans = [(slice(None), slice(0, operands[0].shape[1]), slice(None))]
    if cu is not None:
        spans = [(slice(None), slice(a, b), slice(r, r + 1)) for r, (a, b) in enumerate(itertools.pairwise(cu.tolist()))]

    def heads_first(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, 2, 1).reshape(x.shape[0] * NH, x.shape[1], *x.shape[3:])

    whole = mlstm_truth.Truth()
    parts = []
    for batch, steps, rows in spans:
        flat = [heads_first(x[batch, steps]) for x in (*operands, Gh)]
        of_rows = [x[rows].reshape(x[rows].shape[0] * NH, *x.shape[2:]) for x in (*state, *G)]
        part = mlstm_truth.mlstm(*flat[:5], of_rows[:3], (flat[5], *of_rows[3:]), options)
        parts.append((part, flat[0].shape[0] // NH))
        whole.largest = max(whole.largest, part.largest)
        whole.largest_backward = max(whole.largest_backward, part.largest_backward)
        whole.conditioned = max(whole.conditioned, part.conditioned)
        whole.undecided |= part.undecided
    along_steps = ("h", "dq", "dk", "dv", "di", "df")
    for kind in ("value", "terms"):
        for name in getattr(parts[0][0], kind):
            arrays = [getattr(part, kind)[name].reshape(n, NH, *getattr(part, kind)[name].shape[1:]) for part, n in parts]
            if name in along_steps:
                joined = np.concatenate([np.moveaxis(a, 1, 2) for a in arrays], 1)
                joined = joined[:, 0] if step else joined
            else:
                joined = np.concatenate(arrays)
            getattr(whole, kind)[name] = joined
    return whole


# ---- sLSTM


def _judge_slstm(case: Case, got: dict[str, Tensor]) -> Verdict:
    dtype = DTYPES[case.dtype]
    exact = dtype == torch.float64
    real = np.longdouble if exact else np.float64
    step = case.op.endswith("step")
    x, R = (numpy_of(case.operands[n], real) for n in ("x", "R"))
    x = x[:, None] if step else x
    B, S, _, NH, DH = x.shape
    b = numpy_of(case.operands["b"], real) if "b" in case.operands else np.zeros((4, NH, DH), real)
    cu = case.options.get("cu_seqlens")
    N = B if cu is None else len(cu) - 1
    state = [numpy_of(s, real) for s in case.state.values()] if case.state else [np.zeros((N, NH, DH), real)] * 4
    incoming = case.incoming or {}
    Gh = numpy_of(incoming["h"], real) if "h" in incoming else np.zeros((B, S, NH, DH), real)
    Gh = Gh[:, None] if step and "h" in incoming else Gh
    G = [numpy_of(incoming[n], real) if n in incoming else np.zeros((N, NH, DH), real) for n in ("h_last", "c_last", "n_last")]
    reset = case.options["reset"].numpy() if "reset" in case.options else np.zeros((B, S), bool)
    exponential = case.options["forget_gate"] == "exp"
    if cu is None:
        true, terms, wide = slstm_truth.slstm(x, R, b, state, reset, (Gh, *G), exponential)
    else:
        results = []
        for row, (first, end) in enumerate(itertools.pairwise(cu.tolist())):
            one, steps = slice(row, row + 1), slice(first, end)
            results.append(
                slstm_truth.slstm(
                    x[:, steps], R, b, [s[one] for s in state], reset[:, steps], (Gh[:, steps], *(g[one] for g in G)), exponential
                )
            )
        wide = max(w for *_, w in results)
        true, terms = (_joined([r[kind] for r in results]) for kind in (0, 1))
    if step:
        for arrays in (true, terms):
            arrays["h"], arrays["dx"] = arrays["h"][:, 0], arrays["dx"][:, 0]
    verdict = Verdict()
    rounding = 2.0**-52 if exact else 2.0**-24
    for name, value in got.items():
        table = tolerances.SLSTM_GRAD if name.startswith("d") else tolerances.SLSTM_H
        allowed = table[dtype] + rounding * (16 + 4 * wide)  # x + R h + b is rounded twice, m and d once more
        if value.numel() == 0:
            continue
        error = (numpy_of(value, real) - true[name]).astype(float)
        size = max(float(np.sqrt(np.mean(terms[name].astype(float) ** 2))), 1e-3)
        ratio = float(np.sqrt(np.mean(error**2))) / size / tolerances.for_few(allowed, np.count_nonzero(terms[name]))
        verdict.ratios[name] = float("inf") if ratio != ratio else ratio
    return verdict


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The results of sequences that lie one after the other: steps and rows in a line, gradients of weights summed."""
    axes = {"h": 1, "dx": 1}
    summed = ("dR", "db")
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {name: sum(c) if name in summed else np.concatenate(c, axes.get(name, 0)) for name, c in columns.items()}


# ---- bits


def judge_bits(case: Case) -> dict[str, bool]:
    """The bitwise promises that apply to the case: a row alone against its batch, a split at a multiple of chunk_size."""
    kept: dict[str, bool] = {}
    got = run(case, slice(None))
    B = case.operands["q" if case.op.startswith("mlstm") else "x"].shape[0]
    if B > 1 and "cu_seqlens" not in case.options:
        row = case.index % B
        alone = run(case, slice(row, row + 1))
        kept["row alone"] = all(_same(alone[name], got[name][row : row + 1]) for name in alone)
    border = 64 if case.backend in KERNELS else case.options.get("chunk_size", 0)
    if case.op == "mlstm" and border and case.operands["q"].shape[1] > border and "cu_seqlens" not in case.options:
        kept["split"] = _split_is_whole(case, got, border)
    return kept


def _split_is_whole(case: Case, got: dict[str, Tensor], border: int) -> bool:
    options = {name: x for name, x in case.options.items() if name != "cu_seqlens"}
    state = tuple(case.state.values()) if case.state else None
    pieces = []
    with torch.no_grad():
        for steps in (slice(0, border), slice(border, None)):
            operands = [x[:, steps] for x in case.operands.values()]
            h, state = functional.mlstm(*operands, state=state, return_state=True, backend=case.backend, **options)
            pieces.append(h)
    return _same(torch.cat(pieces, 1), got["h"]) and all(_same(a, got[name]) for a, name in zip(state, "Cnm"))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) and torch.equal(a.isnan(), b.isnan())
