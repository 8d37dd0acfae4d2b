"""Operands, the float64 truth and the error measure that the sLSTM tests share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from tolerances import SLSTM_GRAD, SLSTM_H
from torch import Tensor

from xlstm_cuda import functional

NAMES = ("h", "h_last", "c_last", "n_last", "m_last", "dx", "dR", "db", "dh0", "dc0", "dn0", "dm0")


@dataclass
class Case:
    """Operands of one call, and the gradients that enter its results."""

    x: Tensor
    R: Tensor
    b: Tensor | None
    state: tuple[Tensor, ...] | None
    dh: Tensor
    dstate: tuple[Tensor, Tensor, Tensor]  # on the final h, c, n
    options: dict = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Case:
        """The same values, rounded to `dtype` where the call takes x's dtype; states keep at least float32."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        state = None if self.state is None else tuple(s.to(wide) for s in self.state)
        b = None if self.b is None else self.b.to(dtype)
        dstate = tuple(d.to(wide) for d in self.dstate)
        return Case(self.x.to(dtype), self.R.to(dtype), b, state, self.dh.to(dtype), dstate, self.options)

    def on(self, device: str) -> Case:
        if device == "cpu":
            return self
        move = lambda t: t.to(device) if isinstance(t, Tensor) else t  # noqa: E731
        state = None if self.state is None else tuple(map(move, self.state))
        options = {name: move(value) for name, value in self.options.items()}
        dstate = self.dstate[0].to(device), self.dstate[1].to(device), self.dstate[2].to(device)
        return Case(move(self.x), move(self.R), move(self.b), state, move(self.dh), dstate, options)


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The values that a call in `dtype` sees, in float64: what the truth is computed from."""
    return case.to(dtype).to(torch.float64)


def make_case(B: int, S: int, NH: int, DH: int, *, rows: int | None = None, state: bool = True, seed: int = 0, **options) -> Case:
    """Random operands in float64 whose values float32 and, but for states, bfloat16 hold exactly."""
    g = torch.Generator().manual_seed(seed)
    rows = B if rows is None else rows

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).bfloat16().double()

    start = None
    if state:
        start = tuple(normal(rows, NH, DH) for _ in range(2))
        start += (torch.rand((rows, NH, DH), generator=g).bfloat16().double() + 1, normal(rows, NH, DH))
    return Case(
        x=normal(B, S, 4, NH, DH) + torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)[:, None, None],
        R=(torch.randn((4, NH, DH, DH), generator=g) / DH**0.5).bfloat16().double(),
        b=normal(4, NH, DH),
        state=start,
        dh=normal(B, S, NH, DH),
        dstate=tuple(normal(rows, NH, DH) for _ in range(3)),
        options=options,
    ).to(torch.bfloat16).to(torch.float64)  # fmt: skip


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def run(case: Case, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Results and gradients of one call, by name, on the CPU."""
    case = case.to(dtype).on(device_of(backend))
    leaves = {"dx": case.x, "dR": case.R}
    if case.b is not None:
        leaves["db"] = case.b
    if case.state is not None:
        leaves |= dict(zip(("dh0", "dc0", "dn0", "dm0"), case.state))
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    state = tuple(leaves[name] for name in ("dh0", "dc0", "dn0", "dm0")) if case.state is not None else None
    h, last = functional.slstm(
        leaves["dx"], leaves["dR"], leaves.get("db"), state=state, return_state=True, backend=backend, **case.options
    )
    outputs, incoming = (h, last.h, last.c, last.n), (case.dh, *case.dstate)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), incoming)
    results = dict(zip(NAMES, (h, *last))) | dict(zip(leaves, gradients))
    return {name: value.detach().cpu() for name, value in results.items()}


def error(got: Tensor, truth: Tensor) -> float:
    """Root-mean-square error relative to the truth's, in units of 1 where the truth is below 1e-3."""
    assert got.shape == truth.shape
    if got.numel() == 0:
        return 0.0
    difference = (got.double() - truth).pow(2).mean().sqrt()
    return (difference / truth.pow(2).mean().sqrt().clamp_min(1e-3)).item()


def assert_close(got: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, widest_gate: float = 0.0) -> None:
    """Every result within the tolerance of its dtype; float32 cannot tell gates of 1e4 apart to better than 1e-3."""
    assert got.keys() == truth.keys()
    rounding = 2.0**-52 if dtype == torch.float64 else 2.0**-24  # m is at least float32, whatever x is
    for name, value in got.items():
        tolerance = (SLSTM_H if name.startswith(("h", "c", "n", "m")) else SLSTM_GRAD)[dtype]
        assert torch.isfinite(value).all(), f"{name} is not finite"
        wrong, allowed = error(value, truth[name]), max(tolerance, rounding * (16 + 2 * widest_gate))
        assert wrong <= allowed, f"{name}: {wrong:.2e} > {allowed:.2e}"


PACKED_LENGTHS = [(4, 0, 9, 1, 1, 0, 30), (0, 0), (0, 5), (7,), tuple(range(12))]


def packed_case(lengths: tuple[int, ...], DH: int, with_reset: bool) -> Case:
    """Sequences of these lengths in one row, with resets of their own where asked."""
    borders = torch.tensor((0, *itertools.accumulate(lengths)), dtype=torch.int32)
    case = make_case(1, sum(lengths), 2, DH, rows=len(lengths), cu_seqlens=borders)
    if with_reset:
        case.options["reset"] = torch.rand(1, sum(lengths), generator=torch.Generator().manual_seed(1)) < 0.2
    return case


def assert_equals_separate(packed: dict[str, Tensor], case: Case, backend: str, dtype: torch.dtype) -> None:
    """``packed``, the result of a `packed_case`, is that of each sequence alone, bit for bit."""
    for row, (start, end) in enumerate(itertools.pairwise(case.options["cu_seqlens"].tolist())):
        one = make_case(1, 0, 2, case.R.shape[-1])
        one.x, one.dh, one.R, one.b = case.x[:, start:end], case.dh[:, start:end], case.R, case.b
        one.state = tuple(s[row : row + 1] for s in case.state)
        one.dstate = tuple(d[row : row + 1] for d in case.dstate)
        if "reset" in case.options:
            one.options["reset"] = case.options["reset"][:, start:end]
        alone = run(one, backend, dtype)
        assert torch.equal(alone["h"], packed["h"][:, start:end]) and torch.equal(alone["dx"], packed["dx"][:, start:end])
        assert all(torch.equal(alone[name][0], packed[name][row]) for name in NAMES if name.endswith(("last", "0")))


def assert_same_gradients(got: Callable[..., Tensor], expected: Callable[..., Tensor], case: Case) -> None:
    """Two functions of x, R, b, h0, c0, n0, m0 with the same loss and the same gradients."""

    def results(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (case.x, case.R, case.b, *case.state)]
        loss = function(*leaves)
        return loss, *torch.autograd.grad(loss, leaves)

    torch.testing.assert_close(results(got), results(expected))


def strided(t: Tensor, layout: str) -> Tensor:
    """The same values in another layout: sliced, permuted, last-stride-2, transposed or offset."""
    if layout == "sliced":
        wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype, device=t.device)
        wide[..., 2:-1] = t
        return wide[..., 2:-1]
    if layout == "permuted":
        order = list(reversed(range(t.dim() - 1)))
        return t.permute(*order, t.dim() - 1).contiguous().permute(*order, t.dim() - 1)
    if layout == "last-stride-2":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "transposed":
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)  # offset


def official_vanilla(x: Tensor, R: Tensor, b: Tensor) -> Tensor:
    """h of the official plain-PyTorch sLSTM, from a fresh state; the test is skipped where the peer is not installed."""
    vanilla = pytest.importorskip("xlstm.blocks.slstm.src.vanilla", reason="peer xlstm is not installed (requirements-peers.txt)")
    B, S, _, NH, DH = x.shape
    states, _, _ = vanilla.slstm_forward(
        x.permute(1, 0, 2, 3, 4).reshape(S, B, 4 * NH * DH),
        torch.zeros(4, B, NH * DH, dtype=torch.float64),
        R.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH),
        b.reshape(-1),
        vanilla.slstm_pointwise_function_registry["slstm"],
        constants={},
    )
    return states[0, 1:].view(S, B, NH, DH).transpose(0, 1)
