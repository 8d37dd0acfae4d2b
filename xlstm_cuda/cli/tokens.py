"""Text as numbers and back: every byte a token, or the tokens of a file that the package tokenizers reads (tokenizer.json).

A checkpoint carries the whole tokenizer, so that `generate` needs nothing beside it.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .errors import CommandError
from .settings import VOCAB_SIZE
from .text import Content, Corpus, Joined, Text, mapped

PIECE = 1 << 16  # bytes that are tokenized on their own, up to the last end of a line in them
PIECES = 64  # pieces tokenized at once, by as many threads as tokenizers takes


class Decoder(Protocol):
    """Tokens in, text out, never half a character."""

    def write(self, token: int) -> str:
        """What the token adds to the text; "" while a character is not complete."""

    def end(self) -> str:
        """What is still held back."""


class Coding(Protocol):
    """How text becomes tokens 0 to vocab_size - 1, and tokens text. ``unit`` is what tokens are called."""

    vocab_size: int
    unit: str

    @property
    def json(self) -> str | None:
        """The content of the tokenizer's file; None of bytes."""

    def encode(self, content: bytes) -> list[int]: ...

    def decoder(self) -> Decoder: ...


class Bytes:
    """The coding of a byte-level model."""

    vocab_size = VOCAB_SIZE
    unit = "bytes"
    json = None

    def encode(self, content: bytes) -> list[int]:
        return list(content)

    def decoder(self) -> Decoder:
        return _ByteDecoder()


class _ByteDecoder:
    """Bytes that are not UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A tokenizer of the package tokenizers, from the content of its file. Special tokens are never added.

    Raises:
        CommandError: the package is missing, or the content is not that of such a file.
    """

    unit = "tokens"

    def __init__(self, json: str, where: str) -> None:
        try:
            import tokenizers
        except ImportError:
            raise CommandError(f"{where}: tokenizers is not installed (pip install tokenizers)") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the package raises Exception itself
            raise CommandError(f"{where} is not a tokenizer of the package tokenizers: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.json = json
        self.where = where
        #: Numbers may be left out between tokens; the model's table has a row for each all the same.
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.vocab_size == 0:
            raise CommandError(f"{where} has no tokens")

    def encode(self, content: bytes) -> list[int]:
        return self.encode_all([content])[0]

    def encode_all(self, pieces: list[bytes]) -> list[list[int]]:
        """Each piece on its own. Bytes that are not UTF-8 are read as U+FFFD."""
        texts = [piece.decode("utf-8", errors="replace") for piece in pieces]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decoder(self) -> Decoder:
        return _TokenDecoder(self._tokenizer)


class _TokenDecoder:
    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def write(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""

    def end(self) -> str:
        return ""


BYTES = Bytes()


def load(path: str | None) -> Coding:
    """The coding of ``--tokenizer FILE``; bytes without one."""
    if path is None:
        return BYTES
    try:
        json = Path(path).read_bytes().decode()
    except FileNotFoundError:
        raise CommandError(f"--tokenizer: there is no file {path}") from None
    except UnicodeDecodeError:
        raise CommandError(f"--tokenizer: {path} is not a tokenizer of the package tokenizers: it is not UTF-8") from None
    except OSError as error:
        raise CommandError(f"--tokenizer: cannot read {path}: {error.strerror}") from None
    return Tokenizer(json, f"--tokenizer: {path}")


def of_checkpoint(content: Mapping[str, Any], where: str) -> Coding:
    """The coding that a training checkpoint carries. CommandError as of `Tokenizer`."""
    json = content.get("tokenizer")
    if json is None:
        return BYTES
    if not isinstance(json, str):
        raise CommandError(f"{where} holds no tokenizer where one should be")
    return Tokenizer(json, f"the tokenizer in {where}")


def corpus(text: Text, coding: Coding, eval_bytes: int, folder: Path, first: Callable[[Callable[[], None]], None]) -> Corpus:
    """The text as this coding reads it, at most ``eval_bytes`` bytes of it held out.

    Args:
        folder: the run folder, which takes the tokens of a tokenizer.
        first: calls a function in the first of the processes that share the folder, and lets the others wait.

    Raises:
        CommandError: the folder cannot be written, or its tokens are not those that were written.
    """
    training, held_out = text.split()
    held_out = held_out.part(slice(eval_bytes))
    if not isinstance(coding, Tokenizer):
        return Corpus.of_bytes(training, held_out[:])
    file = TokenFile(folder, text, coding)
    first(file.write)
    ids = [i for pieces in _batches(held_out) for found in coding.encode_all(pieces) for i in found]
    return Corpus(file.read(), torch.tensor(ids, dtype=torch.int64), len(training), len(held_out))


class TokenFile:
    """The training part of a text as tokens on the disk, in a run folder; text and tokenizer are in its name."""

    def __init__(self, folder: Path, text: Text, coding: Tokenizer) -> None:
        self.coding = coding
        self.training, _ = text.split()
        self.dtype: type = np.uint16 if coding.vocab_size <= 1 << 16 else np.int32
        identity = hashlib.sha256(f"{text.sha256} {coding.json}".encode()).hexdigest()
        self.path = folder / f"tokens-{identity[:16]}.bin"

    def write(self) -> None:
        """Writes the file unless it is there. WriteError as of `checkpoint.write`."""
        if self.path.exists():
            return
        print(f"tokens    writing {self.path}", flush=True)
        with checkpoint.replacing(self.path) as file:
            for pieces in _batches(self.training):
                for ids in self.coding.encode_all(pieces):
                    self._check(max(ids, default=0), self.coding.where)
                    file.write(np.array(ids, self.dtype).tobytes())

    def read(self) -> Tensor:
        """The tokens, mapped. CommandError when the file is not there, or not as it was written."""
        try:
            size = self.path.stat().st_size
            tokens = mapped(self.path, self.dtype) if size else torch.empty(0, dtype=torch.int64)
        except OSError as error:
            reason = f"{error.strerror}; every process needs the run folder, on every machine"
            raise CommandError(f"--out: cannot read {self.path}: {reason}") from None
        except ValueError:
            raise CommandError(f"--out: {self.path} is damaged, its length is not that of whole tokens") from None
        for piece in Joined([tokens]).pieces(PIECE * PIECES):
            self._check(int(piece.long().max()), f"--out: {self.path}")
        return tokens

    def _check(self, token: int, where: str) -> None:
        if token >= self.coding.vocab_size:
            raise CommandError(f"{where}: token {token} is outside the vocabulary of {self.coding.vocab_size}")


def _batches(content: Content) -> Iterator[list[bytes]]:
    """The content in lists of pieces that end with a line or, where a line is longer than a piece, with a character."""
    start, pieces = 0, []
    while start < len(content):
        piece = bytes(content[start : start + PIECE].numpy())
        if start + len(piece) < len(content):
            piece = piece[: _cut(piece)]
        start += len(piece)
        pieces.append(piece)
        if len(pieces) == PIECES:
            yield pieces
            pieces = []
    if pieces:
        yield pieces


def _cut(piece: bytes) -> int:
    """Where to end a piece that more text follows."""
    if line := piece.rfind(b"\n") + 1:
        return line
    for back in range(1, min(4, len(piece))):
        if piece[-back] >= 0xC0:  # the first byte of a character, which may go on behind the piece
            return len(piece) - back
        if piece[-back] < 0x80:
            break
    return len(piece)
