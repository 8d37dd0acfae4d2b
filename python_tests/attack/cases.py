"""Drawing a case: everything about it follows from the seed and its number, so any case can be run again alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OPS = ("mlstm", "mlstm_step", "slstm", "slstm_step")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BORDERS = (0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 97, 127, 128, 129)
DIMS = (1, 3, 4, 7, 8, 9, 16, 17, 24)
LAYOUTS = ("contiguous", "swapped", "permuted", "sliced", "every other", "offset", "expanded", "negated")


@dataclass
class Case:
    """One call: its operands as the call gets them, and the gradients that enter its results (None: no gradient is asked for)."""

    seed: int
    index: int
    op: str
    backend: str
    dtype: str
    operands: dict[str, Tensor]
    state: dict[str, Tensor] | None
    options: dict[str, Any]
    incoming: dict[str, Tensor] | None
    regime: str
    about: list[str] = field(default_factory=list)

    @property
    def group(self) -> tuple[str, str, str]:
        return self.op, self.dtype, self.backend

    def __str__(self) -> str:
        shapes = " ".join(f"{name}{tuple(x.shape)}" for name, x in self.operands.items())
        return f"{self.op} {self.dtype} {self.backend}: {shapes}; {'; '.join(self.about)}"


class Draw:
    """Random choices and numbers of one case."""

    def __init__(self, seed: int, index: int):
        self.random = random.Random(f"{seed}/{index}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def some(self, shape: Any, share: float) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator) < share

    def lay(self, x: Tensor, about: list[str], name: str, expandable: bool = True) -> Tensor:
        """The numbers of x in a random layout; the memory between them is NaN."""
        layout = self.random.choice(LAYOUTS) if self.random.random() < 0.5 else "contiguous"
        if layout == "expanded" and not (expandable and x.dim() and x.shape[0]):
            layout = "contiguous"
        if layout != "contiguous":
            about.append(f"{name} {layout}")
        return self._laid(x, layout)

    def _laid(self, x: Tensor, layout: str) -> Tensor:
        if layout == "swapped":
            return x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x
        if layout == "permuted":
            order = list(range(x.dim()))
            self.random.shuffle(order)
            return x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])
        if layout == "sliced":
            axis = self.random.randrange(x.dim())
            wider = torch.cat([torch.full_like(x, torch.nan), x, torch.full_like(x, torch.nan)], axis)
            return wider.narrow(axis, x.shape[axis], x.shape[axis])
        if layout == "every other":
            return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
        if layout == "offset":
            first = self.random.choice((1, 2, 3, 5))
            flat = torch.full((x.numel() + first,), torch.nan, dtype=x.dtype)
            flat[first:] = x.flatten()
            return flat[first:].view(x.shape)
        if layout == "expanded":
            return x[:1].expand(x.shape)
        if layout == "negated":
            return torch._neg_view(-x)
        return x.contiguous()


def draw(seed: int, index: int, backends: tuple[str, ...]) -> Case:
    d = Draw(seed, index)
    op = d.random.choices(OPS, (45, 15, 30, 10))[0]
    share = {"cpu": 6, "simt": 4, "reference": 1}
    backend = d.random.choices(backends, [share[b] for b in backends])[0]
    dtypes = ("float32", "bfloat16", "float16") if backend == "simt" else tuple(DTYPES)
    dtype = d.random.choice(dtypes)
    case = Case(seed, index, op, backend, dtype, {}, None, {}, None, "")
    (_draw_mlstm if op.startswith("mlstm") else _draw_slstm)(d, case)
    return case


def _sizes(d: Draw, case: Case) -> tuple[int, int, int]:
    B, NH = d.random.choice((1, 1, 2, 3)), d.random.choice((1, 1, 2, 3))
    if case.op.endswith("step"):
        return B, 1, NH
    few = case.backend != "cpu" or case.op == "slstm"
    S = d.random.choices(BORDERS, [3 if s < 40 else 1 if few else 2 for s in BORDERS])[0]
    return B, S, NH


def _lengths(d: Draw, S: int) -> list[int]:
    """Lengths of sequences that fill S, some of them empty."""
    cuts = sorted(d.random.randrange(S + 1) for _ in range(d.random.randrange(5)))
    cuts += d.random.sample(cuts, min(len(cuts), 1))  # twice the same border: an empty sequence
    return [b - a for a, b in itertools.pairwise([0, *sorted(cuts), S])]


Gate = Callable[[Draw, Tensor], object]  # changes the gate in place


def _shift(by: float) -> Gate:
    return lambda d, gate: gate.add_(by)


def _some(value: float, share: float) -> Gate:
    return lambda d, gate: gate.masked_fill_(d.some(gate.shape, share), value)


def _pool(d: Draw, gate: Tensor) -> None:
    for value in (20.0, -20.0, 100.0, -100.0, 1e4, -1e4, -torch.inf):
        gate.masked_fill_(d.some(gate.shape, 0.08), value)


def _nothing(d: Draw, gate: Tensor) -> None:
    pass


# name: what happens to the input gate, to the forget gate; both are normal before
REGIMES: dict[str, tuple[Gate, Gate]] = {
    "normal": (_nothing, _nothing),
    "i+20": (_shift(20), _nothing),
    "i-20": (_shift(-20), _nothing),
    "f+20": (_nothing, _shift(20)),
    "f-20": (_nothing, _shift(-20)),
    "i+100": (_shift(100), _nothing),
    "i-100": (_shift(-100), _nothing),
    "f-100": (_nothing, _shift(-100)),
    "some i+-100": (_pool, _nothing),
    "i+1e4": (_shift(1e4), _nothing),
    "i-1e4": (_shift(-1e4), _nothing),
    "some f-1e4": (_nothing, _some(-1e4, 0.15)),
    "some f-inf": (_nothing, _some(-torch.inf, 0.15)),
    "some i-inf": (_some(-torch.inf, 0.3), _nothing),
    "all i-inf": (_shift(-torch.inf), _nothing),
    "both -inf": (_some(-torch.inf, 0.4), _some(-torch.inf, 0.4)),
    "all closed": (_shift(-torch.inf), _shift(-torch.inf)),
    "pool": (_pool, _pool),
}


def _gates(d: Draw, case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    case.regime = d.random.choice(("normal",) * 8 + tuple(REGIMES))
    i, f = d.normal(*shape), d.normal(*shape) + d.random.choice((0, 3))
    REGIMES[case.regime][0](d, i)
    REGIMES[case.regime][1](d, f)
    case.about.append(f"gates {case.regime}")
    return i.to(dtype), f.to(dtype)


def _draw_mlstm(d: Draw, case: Case) -> None:
    about, dtype = case.about, DTYPES[case.dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    B, S, NH = _sizes(d, case)
    step = case.op.endswith("step")
    dims = (8, 16, 24) if step and case.backend == "simt" else DIMS  # the step kernel takes no others
    DHQK, DHHV = d.random.choice(dims), d.random.choice(dims)
    lead = (B, NH) if step else (B, S, NH)
    N = B
    if not step and d.random.random() < 0.25:
        lengths = _lengths(d, S)
        B, N, lead = 1, len(lengths), (1, S, NH)
        case.options["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int()
        about.append(f"lengths {lengths}")
    q, k, v = d.normal(*lead, DHQK), d.normal(*lead, DHQK), d.normal(*lead, DHHV)
    if d.random.random() < 0.4:  # q.n far from 0: well conditioned
        q, k = q.abs(), k.abs()
        about.append("q, k > 0")
    for name, x in (("q", q), ("k", k)):
        if d.random.random() < 0.15:
            x.masked_fill_(d.some((*lead, 1), 0.3), 0.0)
            about.append(f"some {name} = 0")
    gate_dtype = torch.float32 if dtype != torch.float64 and d.random.random() < 0.3 else dtype
    i, f = _gates(d, case, lead, gate_dtype)
    operands = {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype), "i": i, "f": f}
    case.operands = {name: d.lay(x, about, name) for name, x in operands.items()}
    if step or d.random.random() < 0.5:
        state = {"C": d.normal(N, NH, DHQK, DHHV), "n": d.normal(N, NH, DHQK), "m": d.normal(N, NH)}
        state["m"] *= d.random.choice((1.0, 1.0, 30.0))
        case.state = {name: d.lay(x.to(wide), about, name) for name, x in state.items()}
    about.append(f"{'a' if case.state else 'no'} state")

    options: dict[str, Any] = {"eps": d.random.choice((0.0, 0.0, 1e-6))}
    if d.random.random() < 0.25:
        options["igate"] = "sigmoid"
        if d.random.random() < 0.5:
            options["normalize"] = False
    if d.random.random() < 0.3:
        options["scale"] = d.random.choice((0.3, 1.0, -0.5))
    if not step:
        if d.random.random() < 0.15:
            options["normalizer_grad"] = "detached"
        if case.backend == "cpu" and d.random.random() < 0.5:
            options["chunk_size"] = d.random.choice((16, 16, 32, 64))
    about.append(str(options))
    case.options |= options
    if not step or d.random.random() < 0.5:
        case.incoming = {"h": d.lay(d.normal(*lead, DHHV).to(dtype), about, "dh")}
        if d.random.random() < 0.6:
            case.incoming["C"] = d.lay(d.normal(N, NH, DHQK, DHHV).to(wide), about, "dC")
            case.incoming["n"] = d.lay(d.normal(N, NH, DHQK).to(wide), about, "dn")


def _draw_slstm(d: Draw, case: Case) -> None:
    about, dtype = case.about, DTYPES[case.dtype]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    B, S, NH = _sizes(d, case)
    step = case.op.endswith("step")
    DH = d.random.choice(DIMS)
    N = B
    if not step and d.random.random() < 0.25:
        lengths = _lengths(d, S)
        B, N = 1, len(lengths)
        case.options["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int()
        about.append(f"lengths {lengths}")
    elif not step and d.random.random() < 0.25:
        case.options["reset"] = d.some((B, S), 0.1)
        about.append("resets")
    lead = (B,) if step else (B, S)
    i, f = _gates(d, case, (*lead, NH, DH), dtype)
    z, o = (d.normal(*lead, NH, DH) * d.random.choice((1, 1, 30, 1e4)) for _ in range(2))
    x = torch.stack([i, f, z.to(dtype), o.to(dtype)], len(lead))
    weight_dtype = torch.float32 if dtype != torch.float64 and d.random.random() < 0.3 else dtype
    R = (d.normal(4, NH, DH, DH) / DH**0.5).to(weight_dtype)
    case.operands = {"x": d.lay(x, about, "x"), "R": d.lay(R, about, "R")}
    if d.random.random() < 0.7:
        case.operands["b"] = d.lay(d.normal(4, NH, DH).to(weight_dtype), about, "b")
    if step or d.random.random() < 0.5:
        n = d.normal(N, NH, DH).abs() + d.random.choice((1.0, 1.0, 1e-3))
        n *= d.random.choice((1.0, 1.0, 1e-20))
        if case.backend == "simt" and dtype != torch.float32:
            n = n.clamp(min=1.0)  # what 16-bit kernels count on
        state = {"h": d.normal(N, NH, DH).tanh(), "c": d.normal(N, NH, DH).tanh() * n, "n": n, "m": d.normal(N, NH, DH)}
        state["m"] *= d.random.choice((1.0, 1.0, 30.0))
        if d.random.random() < 0.3:
            fresh = d.some(n.shape, 0.3)
            state = {name: s.masked_fill(fresh, 0.0) if name != "h" else s for name, s in state.items()}
            about.append("some units fresh")
        case.state = {name: d.lay(s.to(wide), about, name) for name, s in state.items()}
    about.append(f"{'a' if case.state else 'no'} state")
    case.options["forget_gate"] = d.random.choice(("sigmoid", "sigmoid", "exp"))
    about.append(case.options["forget_gate"])
    if not step or d.random.random() < 0.5:
        case.incoming = {"h": d.lay(d.normal(*lead, NH, DH).to(dtype), about, "dh")}
        if d.random.random() < 0.6:
            for name in ("h_last", "c_last", "n_last"):
                case.incoming[name] = d.lay(d.normal(N, NH, DH).to(wide), about, f"d{name}")
