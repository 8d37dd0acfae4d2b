"""The text that a model learns: where it comes from, how it is split, and in which order training reads it.

A small text is read into memory, a large one is mapped, so that it may be larger than memory; several files are read as one.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import CommandError

if TYPE_CHECKING:
    from .tokens import Coding

DEFAULT_NAME = "Python's help topics (pydoc_data.topics)"
MAPPED_BYTES = 1 << 26  # a file from here on is mapped: it must not shrink while a run reads it
SHUFFLED_WINDOWS = 1 << 24  # up to here an order drawn at random fits easily in memory
HASHED_AT_ONCE = 1 << 24


class Joined:
    """Tensors of one axis, read as one: ``len``, and slices without a step. Only a slice across a border is copied."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.borders = list(itertools.accumulate(map(len, self.parts), initial=0))

    def __len__(self) -> int:
        return self.borders[-1]

    def __getitem__(self, span: slice) -> Tensor:
        found = self.part(span).parts
        return found[0] if len(found) == 1 else torch.cat(found)

    def part(self, span: slice) -> Joined:
        """The same tensors from one place to another, nothing copied."""
        start, end, _ = span.indices(len(self))
        first = min(bisect.bisect_right(self.borders, start), len(self.parts)) - 1
        found = [self.parts[first][start - self.borders[first] : max(end - self.borders[first], 0)]]
        for index in range(first + 1, len(self.parts)):
            if self.borders[index] >= end:
                break
            found.append(self.parts[index][: end - self.borders[index]])
        return Joined(found)

    def pieces(self, length: int) -> Iterator[Tensor]:
        """The whole content, ``length`` at a time."""
        return (self[start : start + length] for start in range(0, len(self), length))


Content: TypeAlias = Tensor | Joined


@dataclass(frozen=True)
class Text:
    """A text as bytes. ``name`` is for people, ``paths`` are its files; ``sha256`` recognises it when a run is resumed."""

    name: str
    content: Joined
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.content)

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.content.pieces(HASHED_AT_ONCE):
            digest.update(piece.numpy().data)
        return digest.hexdigest()

    def split(self) -> tuple[Joined, Joined]:
        """Training part and held-out part, uint8: the first nine tenths and the last tenth."""
        border = _border(len(self))
        return self.content.part(slice(border)), self.content.part(slice(border, None))


def from_bytes(name: str, content: bytes) -> Text:
    """A text in memory."""
    return Text(name, Joined([torch.frombuffer(bytearray(content), dtype=torch.uint8)]))


def load(paths: str | Sequence[str] | None) -> Text:
    """The text in one file or several, one after the other; without one that of Python's own help topics, in their order.

    Raises:
        CommandError: a file is missing, unreadable, a folder or empty.
    """
    if paths is None:
        return from_bytes(DEFAULT_NAME, _help_topics())
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return Text(paths[0] + more, Joined([_read(path) for path in paths]), paths)


def _read(path: str) -> Tensor:
    """A file as uint8, in memory or mapped."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size >= MAPPED_BYTES:
            return mapped(path, np.uint8)
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise CommandError(f"--data: there is no file {path}") from None
    except IsADirectoryError:
        raise CommandError(f"--data: {path} is a folder, expected a text file") from None
    except OSError as error:
        raise CommandError(f"--data: cannot read {path}: {error.strerror}") from None
    if not content:
        raise CommandError(f"--data: {path} is empty")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def mapped(path: str | os.PathLike[str], dtype: type) -> Tensor:
    """A file that stays on the disk, of which the system keeps in memory what is read and what there is room for."""
    content = np.memmap(path, dtype, mode="r")  # private but writable maps count as memory, and larger ones are refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a tensor over it must not be written to: nothing writes to a text
        return torch.from_numpy(content)


def _help_topics() -> bytes:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CommandError("this Python comes without its help topics (pydoc_data); give a text file with --data") from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def check_length(text: Text, context_length: int) -> None:
    """CommandError when a part of the split is too short to train on or to score."""
    if not _long_enough(len(text), context_length):
        shortest = next(n for n in range(context_length, 2 * context_length + 32) if _long_enough(n, context_length))
        raise CommandError(
            f"--data: {text.name} has {len(text)} bytes; a context of {context_length} bytes needs at least {shortest}"
            " (nine tenths to train on, one tenth held out)"
        )


def _border(length: int) -> int:
    """Nine tenths are training text, the last tenth is held out."""
    return length * 9 // 10


def _long_enough(length: int, context_length: int) -> bool:
    return _border(length) > context_length and length - _border(length) >= 2


class Windows:
    """Training batches as a pure function of the step, so that a resumed run reads on where the first one stopped.

    The text is cut into windows of ``context_length`` tokens (plus the one to predict), read in a random order; every pass over
    the text cuts at another offset and shuffles anew. Of more windows than `SHUFFLED_WINDOWS` the order is not drawn one by one:
    it goes in steps of one random length, about 0.4 to 0.6 of the text, that has no divisor in common with their number.
    """

    def __init__(self, content: Content, context_length: int, batch_size: int, seed: int) -> None:
        self.content = content
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self.count = max(1, (len(content) - 1) // context_length - 1)  # one less than fits leaves room for the offset
        self._pass = -1
        self._offset = 0
        self._order = torch.empty(0)
        self._stride = 1

    def batch(self, step: int, rows: range | None = None) -> Tensor:
        """(batch_size, context_length + 1) int64: the windows of this step, or those rows of them."""
        first = step * self.batch_size
        starts = [self._start(first + row) for row in rows or range(self.batch_size)]
        return torch.stack([self.content[start : start + self.context_length + 1].long() for start in starts])

    def _start(self, index: int) -> int:
        number, place = divmod(index, self.count)
        if number != self._pass:
            self._shuffle(torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63))
            self._pass = number
        window = int(self._order[place]) if len(self._order) else place * self._stride % self.count
        return self._offset + window * self.context_length

    def _shuffle(self, generator: torch.Generator) -> None:
        room = len(self.content) - 1 - self.count * self.context_length
        self._offset = int(torch.randint(0, min(room, self.context_length) + 1, (), generator=generator))
        if self.count <= SHUFFLED_WINDOWS:
            self._order = torch.randperm(self.count, generator=generator)
            return
        self._stride = int(torch.randint(self.count * 2 // 5, self.count * 3 // 5, (), generator=generator))
        while math.gcd(self._stride, self.count) > 1:
            self._stride += 1


@dataclass(frozen=True)
class Corpus:
    """What a model reads of a text: tokens to learn and tokens to be scored on, and how many bytes the text had for them."""

    training: Content
    held_out: Tensor
    training_bytes: int
    held_out_bytes: int

    @classmethod
    def of_bytes(cls, training: Content, held_out: Tensor) -> Corpus:
        """Every byte is a token."""
        return cls(training, held_out, len(training), len(held_out))

    @property
    def tokens_per_byte(self) -> float:
        """Of the training part; 1 where bytes are the tokens."""
        return len(self.training) / self.training_bytes

    @property
    def held_out_tokens_per_byte(self) -> float:
        return len(self.held_out) / self.held_out_bytes


def check_corpus(corpus: Corpus, coding: Coding, context_length: int) -> None:
    """CommandError when there are too few tokens to train on or to score."""
    if len(corpus.training) <= context_length or len(corpus.held_out) < 2:
        raise CommandError(
            f"--data: the text is {len(corpus.training)} {coding.unit} to learn and {len(corpus.held_out)} held out; a context of"
            f" {context_length} {coding.unit} needs at least {context_length + 1} and 2"
        )
