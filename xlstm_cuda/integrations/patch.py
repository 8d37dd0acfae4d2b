"""Swapping attributes of another package: all of them or none, once, under a lock, and back to the very same objects.

An integration lists its `Swap`s. Several integrations may hold the same one (every xLSTM-7b model runs on mLSTMBackend.forward):
it is made by the first and undone by the last.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import torch

from .. import checks
from ..backends import NAMES, backends

_ABSENT: Any = object()  #: what an owner without the attribute had


class IntegrationError(RuntimeError):
    """An integration that cannot be switched on, or not now; nothing was changed."""


class UnsupportedVersion(IntegrationError):
    """The installed peer is of a version, or of a form, that this integration does not know."""


@dataclass(frozen=True)
class Swap:
    """One attribute of a class or module, or one key of a dictionary, and what takes its place.

    replace: makes the replacement from the original. parameters: names that the original's signature must have; an entry without
    any may be absent before.
    """

    owner: Any
    name: str
    replace: Callable[[Any], Any]
    parameters: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[int, str]:
        return id(self.owner), self.name

    def read(self) -> Any:
        """What the owner itself has, not what it inherits."""
        entries = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return entries.get(self.name, _ABSENT)

    def original(self) -> Any:
        """What the replacement stands for: its own, or what it inherits; None without either."""
        own = self.read()
        return own if own is not _ABSENT else None if isinstance(self.owner, dict) else getattr(self.owner, self.name, None)

    def write(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            if value is _ABSENT:
                self.owner.pop(self.name, None)
            else:
                self.owner[self.name] = value
        elif value is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)

    def check(self) -> None:
        """UnsupportedVersion unless the original has the signature that the replacement is written for."""
        where = f"{getattr(self.owner, '__module__', '')}.{getattr(self.owner, '__name__', 'registry')}.{self.name}".lstrip(".")
        original = self.original()
        if original is None and self.parameters:
            raise UnsupportedVersion(f"{where}: got no such attribute, expected a function of {', '.join(self.parameters)}")
        if self.parameters:
            found = inspect.signature(original).parameters
            if lacking := [name for name in self.parameters if name not in found]:
                raise UnsupportedVersion(f"{where}: got parameters {', '.join(found)}, expected also {', '.join(lacking)}")


@dataclass
class _Made:
    """A swap in force."""

    swap: Swap
    original: Any
    replacement: Any
    backend: str | None
    holders: set[str] = field(default_factory=set)


_lock = threading.RLock()
_made: dict[tuple[int, str], _Made] = {}
_handles: dict[str, Handle] = {}


class Handle:
    """An integration that is switched on, also a context manager.

    `disable` restores what was there, whoever else enabled it. The end of a ``with`` restores it too, unless it was enabled
    before that ``with`` or another ``with`` is still open.

    Examples:
        >>> from xlstm_cuda import integrations
        >>> with integrations.alias_xlstm() as handle:
        ...     print(handle)
        <xlstm_cuda.integrations.alias_xlstm: on, backend None>
        >>> handle
        <xlstm_cuda.integrations.alias_xlstm: off, backend None>
        >>> integrations.enabled()
        ()
    """

    def __init__(self, name: str, backend: str | None, find: Callable[[str | None], Sequence[Swap]]):
        self.name, self.backend = name, backend
        self._find = find
        self._swaps: Sequence[Swap] = ()
        self._enabled = 0  #: calls of enable and open `with`s that no end of a `with` has answered
        self._entered = 0

    def disable(self) -> None:
        """Restores the very objects that were there. A second call does nothing."""
        _refuse_in_compiled_code(f"{self.name}.disable()")
        with _lock:
            self._off()

    def __enter__(self) -> Handle:
        _refuse_in_compiled_code(f"{self.name}.__enter__()")
        with _lock:
            if self.name not in _handles:
                self._on()
            self._entered += 1
            self._enabled = max(self._enabled, self._entered)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _lock:
            self._entered = max(self._entered - 1, 0)
            self._enabled -= 1
            if self._enabled <= 0:
                self._off()

    def __repr__(self) -> str:
        state = "on" if _handles.get(self.name) is self else "off"
        return f"<xlstm_cuda.integrations.{self.name}: {state}, backend {self.backend}>"

    def _on(self) -> None:
        swaps = list(self._find(self.backend))
        made: list[_Made] = []
        try:
            for swap in swaps:
                made.append(_hold(swap, self.name, self.backend))
        except BaseException:
            for one in reversed(made):
                _release(one, self.name)
            raise
        self._swaps = swaps
        _handles[self.name] = self
        _forget_compiled()

    def _off(self) -> None:
        self._enabled = 0
        if _handles.get(self.name) is not self:
            return
        del _handles[self.name]
        for swap in reversed(self._swaps):
            _release(_made[swap.key], self.name)
        self._swaps = ()
        _forget_compiled()


def enable(name: str, backend: str | None, find: Callable[[str | None], Sequence[Swap]]) -> Handle:
    """Switches an integration on, or returns the handle of the one that is on.

    Raises:
        ImportError: the package is not installed, or lacks one of its own.
        ValueError, RuntimeError: no backend of this name, or not usable here.
        IntegrationError: called in code that is being compiled; on already with another backend; an unsupported version.
    """
    _refuse_in_compiled_code(f"{name}.enable()")
    if backend is not None:
        checks.choice("backend", backend, NAMES)
        if not (found := backends()[backend]):
            raise RuntimeError(f"backend {backend!r} is not usable here: {found.reason}")
    with _lock:
        handle = _handles.get(name)
        if handle is None:
            handle = Handle(name, backend, find)
            handle._on()
        elif handle.backend != backend:
            raise IntegrationError(
                f"{name}: got backend {backend!r}, expected {handle.backend!r}, with which it is on: disable it first"
            )
        handle._enabled += 1
        return handle


def enabled() -> tuple[str, ...]:
    """The names of the integrations that are on, in the order in which they were enabled."""
    with _lock:
        return tuple(_handles)


def is_on(name: str) -> bool:
    """Whether the integration of this name is on."""
    with _lock:
        return name in _handles


def peer(integration: str, module: str, distribution: str, at_least: tuple[int, int], below: tuple[int, int]) -> ModuleType:
    """A module of a peer whose version is known to work.

    Raises:
        ImportError: names the package that is not installed.
        UnsupportedVersion: at_least <= version < below does not hold. A package without metadata goes by its names alone.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        lacking = error.name or module
        missing = distribution if lacking.split(".")[0] == module.split(".")[0] else f"{lacking}, which {distribution} needs,"
        raise ImportError(
            f"integrations.{integration}: the package {missing} cannot be imported: {error}", name=lacking
        ) from error
    try:
        version: Any = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules[module.split(".")[0]], "__version__", None)
    if version is not None and not at_least <= _release_of(version) < below:
        expected = f"at least {at_least[0]}.{at_least[1]} and below {below[0]}.{below[1]}"
        raise UnsupportedVersion(f"integrations.{integration}: got {distribution} {version}, expected {expected}")
    return found


def keeping_signature(original: Callable, replacement: Callable) -> Callable:
    """The replacement with the name, documentation and signature of the original."""
    return functools.wraps(original)(replacement)


def _release_of(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _hold(swap: Swap, name: str, backend: str | None) -> _Made:
    """Makes the swap, or shares the one in force."""
    made = _made.get(swap.key)
    if made is None:
        swap.check()
        made = _Made(swap, swap.read(), swap.replace(swap.original()), backend)
        swap.write(made.replacement)
        _made[swap.key] = made
    elif made.backend != backend:
        others = ", ".join(sorted(made.holders))
        raise IntegrationError(
            f"{name}: got backend {backend!r}, expected {made.backend!r}, with which {others} is on: disable it first"
        )
    made.holders.add(name)
    return made


def _release(made: _Made, name: str) -> None:
    """Undoes the swap if no other integration holds it."""
    made.holders.discard(name)
    if made.holders:
        return
    del _made[made.swap.key]
    if made.swap.read() is not made.replacement:
        warnings.warn(
            f"integrations.{name}: {made.swap.name} was changed by others in the meantime; what was there before is restored",
            RuntimeWarning,
            stacklevel=4,
        )
    made.swap.write(made.original)


def _refuse_in_compiled_code(call: str) -> None:
    if torch.compiler.is_compiling():
        raise IntegrationError(f"{call}: called in code that is being compiled; call it before torch.compile'd code runs")


def _forget_compiled() -> None:
    """Programs that torch.compile made of the peer's functions must be made again; they do not watch a class's attributes."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
