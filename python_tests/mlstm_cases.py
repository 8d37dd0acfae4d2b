"""Inputs of the mLSTM tests, and running a backend and the float64 reference on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from backend_fixture import KERNELS
from torch import Tensor

from xlstm_cuda import MLSTMState, functional

NAMES = ("q", "k", "v", "i", "f", "C0", "n0", "m0")


@dataclass(frozen=True)
class Case:
    B: int = 2
    S: int = 65
    NH: int = 3
    DHQK: int = 16
    DHHV: int = 24
    dtype: torch.dtype = torch.float64
    state: bool = False
    gates: str = "normal"
    options: dict = field(default_factory=dict)
    lengths: tuple[int, ...] | None = None
    seed: int = 0

    def __str__(self) -> str:
        parts = [f"B{self.B}-S{self.S}-NH{self.NH}-D{self.DHQK}x{self.DHHV}-{str(self.dtype).removeprefix('torch.')}"]
        parts += [self.gates] * (self.gates != "normal") + ["state"] * self.state
        parts += [f"{k}={v}" for k, v in self.options.items()]
        parts += ["lengths=" + "+".join(map(str, self.lengths))] if self.lengths is not None else []
        return "-".join(parts)

    @property
    def cu_seqlens(self) -> Tensor | None:
        if self.lengths is None:
            return None
        return torch.tensor([0, *self.lengths]).cumsum(0).int()


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def exact_dtype(backend: str) -> torch.dtype:
    """The most exact dtype that a backend takes."""
    return torch.float32 if backend in KERNELS else torch.float64


def for_backend(case: Case, backend: str) -> Case:
    return replace(case, dtype=exact_dtype(backend)) if case.dtype == torch.float64 else case


def mlstm(*operands: Tensor, backend: str, state=None, cu_seqlens=None, **options):
    """`functional.mlstm` with operands moved to the backend's device and results back."""
    device = device_of(backend)
    state = None if state is None else [x.to(device) for x in state]
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.to(device)
    result = functional.mlstm(*(x.to(device) for x in operands), state=state, cu_seqlens=cu_seqlens, backend=backend, **options)
    if isinstance(result, tuple):
        return result[0].cpu(), MLSTMState(*(x.cpu() for x in result[1]))
    return result.cpu()


def largest_gate(tensors: list[Tensor]) -> float:
    gates = torch.cat([x.detach().flatten() for x in tensors[3:5]]).double()
    return max(gates[gates.isfinite()].abs().tolist(), default=0.0)


def _every(n: int, value: float) -> Callable[[Tensor], None]:
    def set_every(gate: Tensor) -> None:
        gate[:, ::n] = value

    return set_every


GATES: dict[str, tuple[Callable, Callable]] = {
    # name: (what happens to i, what happens to f), both N(0, 1) before, f shifted by 3
    "normal": (lambda i: None, lambda f: None),
    "i+20": (lambda i: i.add_(20), lambda f: None),
    "i-20": (lambda i: i.sub_(20), lambda f: None),
    "i+100": (lambda i: i.add_(100), lambda f: None),
    "i-100": (lambda i: i.sub_(100), lambda f: None),
    "i-1e4": (lambda i: i.sub_(1e4), lambda f: None),
    "f+100": (lambda i: None, lambda f: f.add_(100)),
    "f-20": (lambda i: None, lambda f: f.sub_(20)),
    "f-1e4 every 8th": (lambda i: None, _every(8, -1e4)),
    "f-inf one token": (lambda i: None, lambda f: f[:, 5:6].fill_(-torch.inf)),
    "f-inf every 7th": (lambda i: None, _every(7, -torch.inf)),
    "f-inf all": (lambda i: None, lambda f: f.fill_(-torch.inf)),
    "i-inf prefix": (lambda i: i[:, :9].fill_(-torch.inf), lambda f: None),
    "i-inf one token": (lambda i: i[:, 4:5].fill_(-torch.inf), lambda f: None),
    "i-inf all": (lambda i: i.fill_(-torch.inf), lambda f: None),
    "both -inf": (_every(3, -torch.inf), _every(6, -torch.inf)),
    "i+100 then f-inf and i-100": (lambda i: (i[:, :8].add_(100), i[:, 8:].sub_(100)), lambda f: f[:, 8:9].fill_(-torch.inf)),
}


def inputs(case: Case) -> list[Tensor]:
    """q, k, v, i, f and, with a state, C0, n0, m0: leaves that require gradients."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B, S, NH = case.B, case.S, case.NH
    q, k, v = normal(B, S, NH, case.DHQK), normal(B, S, NH, case.DHQK), normal(B, S, NH, case.DHHV)
    i, f = normal(B, S, NH), normal(B, S, NH) + 3
    GATES[case.gates][0](i)
    GATES[case.gates][1](f)
    tensors = [x.to(case.dtype) for x in (q, k, v, i, f)]
    if case.state:
        N = B if case.lengths is None else len(case.lengths)
        state_dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
        state = normal(N, NH, case.DHQK, case.DHHV), normal(N, NH, case.DHQK), normal(N, NH)
        tensors += [x.to(state_dtype) for x in state]
    return [x.requires_grad_() for x in tensors]


def run(case: Case, tensors: list[Tensor], backend: str, loss_on_state: bool = True) -> dict[str, Tensor]:
    """h, the final state, and the gradients of a random loss directly on h and on C, n at fixed gauge."""
    q, k, v, i, f, *state = tensors
    options = case.options if backend != "reference" else {k: v for k, v in case.options.items() if k != "chunk_size"}
    h, last = mlstm(
        q, k, v, i, f,
        state=tuple(state) or None, return_state=True, cu_seqlens=case.cu_seqlens, backend=backend, **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(case.seed + 1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(h.dtype) for x in (h, last.C, last.n)]
    loss = (h * weights[0].to(h.dtype)).sum()
    if loss_on_state:
        loss = loss + (last.C * weights[1].to(last.C.dtype)).sum() + (last.n * weights[2].to(last.n.dtype)).sum()
    gradients = torch.autograd.grad(loss, tensors)
    return {"h": h, "C": last.C, "n": last.n, "m": last.m, **{"d" + name: g for name, g in zip(NAMES, gradients)}}


def truth(case: Case, tensors: list[Tensor], **kwargs) -> dict[str, Tensor]:
    """The float64 reference on the very numbers of ``tensors``."""
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    rounded = replace(case, dtype=torch.float64)
    result = run(rounded, doubles, "reference", **kwargs)
    q, k = doubles[0].detach(), doubles[1].detach()
    # df is what is left of |q.dq| + |k.dk|, which cancel: its error is measured against them.
    result["df terms"] = (q * result["dq"]).sum(-1).abs() + (k * result["dk"]).sum(-1).abs() + result["df"].abs()
    if len(doubles) > 5:  # so is dm0 = <C0, dC0> + <n0, dn0>, a sum of products of any sign
        products = (doubles[5].detach() * result["dC0"]).square().sum((-1, -2)) + (
            doubles[6].detach() * result["dn0"]
        ).square().sum(-1)
        result["dm0 terms"] = products.sqrt()
    return result
