"""The text that a byte-level model learns: where it comes from, how it is split, and in which order training reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .errors import CommandError

DEFAULT_NAME = "Python's help topics (pydoc_data.topics)"


@dataclass(frozen=True)
class Text:
    """A text as bytes. ``name`` is for people; ``sha256`` recognises the text when a run is resumed."""

    name: str
    content: bytes
    is_default: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def split(self) -> tuple[Tensor, Tensor]:
        """Training part and held-out part: uint8 tensors, the first nine tenths and the last tenth."""
        border = _border(len(self.content))
        whole = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
        return whole[:border], whole[border:]


def load(path: str | None) -> Text:
    """The text in a file, or without one the text of Python's own help topics, in alphabetical order.

    Raises:
        CommandError: the file is missing, unreadable, a folder or empty.
    """
    if path is None:
        return Text(DEFAULT_NAME, _help_topics(), is_default=True)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise CommandError(f"--data: there is no file {path}") from None
    except IsADirectoryError:
        raise CommandError(f"--data: {path} is a folder, expected a text file") from None
    except OSError as error:
        raise CommandError(f"--data: cannot read {path}: {error.strerror}") from None
    if not content:
        raise CommandError(f"--data: {path} is empty")
    return Text(path, content)


def _help_topics() -> bytes:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CommandError("this Python comes without its help topics (pydoc_data); give a text file with --data") from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def check_length(text: Text, context_length: int) -> None:
    """CommandError when a part of the split is too short to train on or to score."""
    if not _long_enough(len(text.content), context_length):
        shortest = next(n for n in range(context_length, 2 * context_length + 32) if _long_enough(n, context_length))
        raise CommandError(
            f"--data: {text.name} has {len(text.content)} bytes; a context of {context_length} bytes needs at least {shortest}"
            " (nine tenths to train on, one tenth held out)"
        )


def _border(length: int) -> int:
    """Nine tenths are training text, the last tenth is held out."""
    return length * 9 // 10


def _long_enough(length: int, context_length: int) -> bool:
    return _border(length) > context_length and length - _border(length) >= 2


class Windows:
    """Training batches as a pure function of the step, so that a resumed run reads on where the first one stopped.

    The text is cut into windows of ``context_length`` bytes (plus the byte to predict), read in a random order; every pass over
    the text cuts at another offset and shuffles anew.
    """

    def __init__(self, content: Tensor, context_length: int, batch_size: int, seed: int) -> None:
        self.content = content
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self.count = max(1, (len(content) - 1) // context_length - 1)  # one less than fits leaves room for the offset
        self._pass = -1
        self._starts = torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """(batch_size, context_length + 1) int64: the windows of this step."""
        first = step * self.batch_size
        starts = torch.stack([self._start(index) for index in range(first, first + self.batch_size)])
        return self.content[starts[:, None] + torch.arange(self.context_length + 1)].long()

    def _start(self, index: int) -> Tensor:
        number, place = divmod(index, self.count)
        if number != self._pass:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
            room = len(self.content) - 1 - self.count * self.context_length
            offset = torch.randint(0, min(room, self.context_length) + 1, (), generator=generator)
            self._starts = offset + torch.randperm(self.count, generator=generator) * self.context_length
            self._pass = number
        return self._starts[place]
