"""The gate before every timing: outputs and gradients agree with the float64 reference, or no time is taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .contenders import Case, Contender, Prepared
from .draw import Normal

#: Largest error relative to the norm of the truth. Peers round more often than we do; our own bounds are those of python_tests.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}

TERMS = " terms"  #: key of the size of what cancels in a gradient


@dataclass
class Gate:
    """``verdict``: "agrees", "disagrees", or "other function" where there is nothing to agree with."""

    verdict: str
    errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0
    shape: dict[str, int] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        return self.verdict != "disagrees"

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.errors.items(), key=lambda item: item[1])

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.errors:
            return self.verdict
        name, error = self.worst
        return f"{self.verdict} (worst {name} {error:.0e}, bound {self.tolerance:.0e})"


#: Results of the reference by suite, gate shape, passes and definition.
Truths = dict[tuple[object, ...], dict[str, Tensor]]


def run_gate(case: Case, contender: Contender, device: torch.device, truths: Truths) -> Gate:
    """Compares the contender with its truth at the case's gate shape. ``truths`` keeps what the reference has computed."""
    if contender.truth is None:
        return Gate("other function")
    key = case.suite, tuple(case.gate_shape.items()), case.backward, contender.truth
    if key not in truths:
        reference = case.truths[contender.truth](case.gate_shape, torch.device("cpu"), torch.float64)
        truths[key] = results(reference, case.backward)
    truth = truths[key]
    got = results(contender.build(case.gate_shape, device, case.dtype), case.backward)
    errors = {
        name: relative_error(value, truth[name], truth.get(name + TERMS))
        for name, value in got.items()
        if not name.endswith(TERMS)
    }
    tolerance = TOLERANCE[case.dtype] * case.slack
    agrees = all(error <= tolerance for error in errors.values())  # a NaN does not
    return Gate("agrees" if agrees else "disagrees", errors, tolerance, dict(case.gate_shape))


def results(prepared: Prepared, backward: bool) -> dict[str, Tensor]:
    """Outputs and, with ``backward``, the gradients of a random loss directly on the output, on the CPU in float64."""
    if prepared.check is not None:
        return {name: value.detach().cpu().double() for name, value in prepared.check().items()}
    with torch.set_grad_enabled(backward):
        out = prepared.forward()
    found = {"output": out}
    if backward:
        dout = prepared.canonical(incoming(prepared.canonical(out.detach())))
        found |= dict(zip(prepared.leaves, torch.autograd.grad(out, list(prepared.leaves.values()), dout)))
    compared = {name: prepared.canonical(value).detach().cpu().double() for name, value in found.items()}
    if backward and {"q", "k", "f"} <= compared.keys():
        # df is what is left of |q.dq| + |k.dk|, which cancel: its error is measured against them.
        q, k = (prepared.canonical(prepared.leaves[name]).detach().cpu().double() for name in "qk")
        terms = (q * compared["q"]).sum(-1).abs() + (k * compared["k"]).sum(-1).abs() + compared["f"].abs()
        compared["f" + TERMS] = terms
    return compared


def incoming(like: Tensor) -> Tensor:
    """The gradient that enters the output: the same numbers for every contender and dtype, and at a gate's shape every device."""
    return Normal(like.device, seed=1)(*like.shape).to(like.dtype)


def relative_error(value: Tensor, truth: Tensor, terms: Tensor | None = None) -> float:
    """Norm of the difference over the norm of the truth, or of the terms that cancel in it."""
    if value.shape != truth.shape:
        raise ValueError(f"gate: got shape {tuple(value.shape)}, expected {tuple(truth.shape)}")
    scale = (truth if terms is None else terms).norm()
    return float((value - truth).norm() / scale) if scale else float(value.norm())
