"""The host executor of the CUDA kernels: how the next launches on backend "simt" run, and what they did.

`options` chooses the schedule, the GPU whose limits hold, the race detector; `profile` collects what each launch did. Both are
meant for tests and for writing kernels (docs/simt.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from . import native

ORDERS = ("fifo", "reverse", "lifo", "random", "starve")
LANDINGS = ("late", "early", "random")
MMA_MODELS = ("float64", "float32", "hopper")
ARCHITECTURES = (80, 86, 87, 89, 90)


@dataclass(frozen=True)
class Options:
    """How launches on backend "simt" run.

    order: which thread that can run goes next: "fifo", "reverse", "lifo", "random", or "starve", which is random but holds one
        lane, warp or block back until the others have come as far as they can.
    seed: of the random choices; errors name it.
    landing: when asynchronous copies land: "late" (at the wait, NaN until then), "early" or "random".
    mma: arithmetic of the tensor cores: "float64" (one rounding), "float32", or "hopper" (truncating, after MMA-Sim).
    sm: the GPU whose limits and instructions hold: 80, 86, 87, 89 or 90.
    largest_cluster: the blocks of the largest cluster that this GPU holds, 1 to 16.
    races: report accesses that nothing orders, as a RuntimeError with both source lines.
    sanitize: run the module built with address and undefined-behaviour checks (XLSTM_SIMT_ASAN=ON, LD_PRELOAD of libasan).
    """

    order: str = "random"
    seed: int = 1
    landing: str = "late"
    mma: str = "float64"
    sm: int = 90
    largest_cluster: int = 16
    races: bool = False
    sanitize: bool = False

    def __post_init__(self) -> None:
        for name, accepted in (("order", ORDERS), ("landing", LANDINGS), ("mma", MMA_MODELS), ("sm", ARCHITECTURES)):
            value = getattr(self, name)
            if value not in accepted:
                raise ValueError(f"simt: {name}: got {value!r}, expected one of {', '.join(map(repr, accepted))}")
        if not 1 <= self.largest_cluster <= 16:
            raise ValueError(f"simt: largest_cluster: got {self.largest_cluster}, expected 1 to 16")


def _from_environment() -> Options:
    """XLSTM_SIMT_ORDER, _SEED, _LANDING, _MMA, _SM, _RACES, _SANITIZE, so that a whole test run can be set from outside."""
    default = Options()
    values: dict[str, Any] = {}
    for name in Options.__dataclass_fields__:
        text = os.environ.get(f"XLSTM_SIMT_{name.upper()}")
        if text:
            kind = type(getattr(default, name))
            values[name] = text not in ("0", "OFF") if kind is bool else kind(text)
    return replace(default, **values)


_current = _from_environment()
_launches: list[dict[str, Any]] | None = None


def current() -> Options:
    """The options that the next launch gets."""
    return _current


@contextmanager
def options(**changes: Any) -> Iterator[Options]:
    """Changes fields of `Options` for the launches inside a ``with``.

    Examples:
        >>> with options(order="lifo", races=True) as inside:
        ...     inside.order
        'lifo'
    """
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield _current
    finally:
        _current = before


@contextmanager
def profile() -> Iterator[list[dict[str, Any]]]:
    """Collects a dictionary for every kernel launched on backend "simt" inside the block.

    Keys: kernel, grid, block, cluster (3-tuples), cooperative, shared_bytes (static and dynamic, per block), blocks, threads;
    counts over the whole grid: mma, ldmatrix, stmatrix, shuffles, warp_collectives, block_barriers, mbarrier_phases,
    async_copies; global_bytes_read, global_bytes_written (a broadcast counts once per warp), global_requests, global_sectors
    (of 32 bytes), sectors_per_request, sector_factor (sectors over the fewest that hold the bytes), shared_wavefronts,
    bank_conflict_factor (1.0: free of conflicts), and lines: the same per source line.
    The dictionaries are there when the block ends, those of a launch that raised are not.
    """
    global _launches
    before, _launches = _launches, []
    module = native.simt("_trace")
    module.simt_take_launches()
    try:
        yield _launches
    finally:
        _launches.extend(module.simt_take_launches())
        if before is not None:
            before.extend(_launches)
        _launches = before


def module() -> ModuleType:
    """The executor's module for the next launch, configured by the options in force."""
    profiling = _launches is not None
    if _current.sanitize:
        if profiling or _current.races:
            raise RuntimeError("simt: sanitize=True does not combine with races or with profile()")
        variant = "_asan"
    else:
        variant = "_trace" if profiling or _current.races else ""
    chosen = native.simt(variant)
    chosen.simt_configure(
        order=_current.order, seed=_current.seed, landing=_current.landing, mma=_current.mma, sm=_current.sm,
        largest_cluster=_current.largest_cluster, races=_current.races, profile=profiling,
    )  # fmt: skip
    return chosen
