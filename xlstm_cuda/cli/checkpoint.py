"""Checkpoint files of a training run: never half written, checked before they are believed, and free of code.

A file is written aside, flushed to the disk and then renamed over the old one, so at every moment, also after a power cut, the
name holds one complete checkpoint. Loading checks the checksums in the file and runs no code from it (``weights_only=True``).
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import CommandError

FORMAT = "xlstm_cuda training checkpoint"
VERSION = 1
BEST = "best.pt"
LAST = "last.pt"


class WriteError(CommandError):
    """A file could not be written; what the name held before is intact."""


def serialize(content: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint file. ``content`` holds tensors, numbers, strings, lists and dictionaries only."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Replaces the file in one step. WriteError as of `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to inside the block, which takes the name when the block ends without an error.

    Raises:
        WriteError: the folder cannot be written, the disk is full, ...
    """
    aside = path.with_name(path.name + ".partial")
    try:
        try:
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        with contextlib.suppress(OSError):  # the folder that could not be written; the first error is the one to tell
            aside.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU.

    Raises:
        CommandError: missing, unreadable, truncated, damaged, or not a checkpoint of `python -m xlstm_cuda train`.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CommandError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CommandError(f"cannot read checkpoint {path}: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            damaged = archive.testzip()
    except Exception:  # zipfile raises many kinds for a damaged directory
        raise CommandError(f"{path} is not a checkpoint, or only the beginning of one") from None
    if damaged:
        raise CommandError(f"checkpoint {path} is damaged: the checksum of {damaged} is wrong")
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception:  # an archive of something else, or one that wants to run code
        raise CommandError(f"{path} is not a checkpoint of `python -m xlstm_cuda train`") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CommandError(f"{path} is not a checkpoint of `python -m xlstm_cuda train`")
    if content.get("version") != VERSION:
        raise CommandError(f"{path}: got checkpoint version {content.get('version')!r}, expected {VERSION}")
    return content
