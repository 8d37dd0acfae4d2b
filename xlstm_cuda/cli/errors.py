"""The ways a command ends early. They print one line and no traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CommandError(Exception):
    """Something outside the program is not as it must be: a file, a folder, a device. Exit code 1."""


class UsageError(Exception):
    """Options that do not go together. Exit code 2, like the errors of argparse."""


class SaidElsewhere(Exception):
    """Another process of the same run prints the line; this one ends with the same exit code and prints nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextlib.contextmanager
def reading(option: str, path: str, expected: str) -> Iterator[None]:
    """Around reading a file that an option names: what is wrong with it, as a CommandError.

    Args:
        expected: what the file should be, said where it is a folder.
    """
    try:
        yield
    except FileNotFoundError:
        raise CommandError(f"{option}: there is no file {path}") from None
    except IsADirectoryError:
        raise CommandError(f"{option}: {path} is a folder, expected {expected}") from None
    except OSError as error:
        raise CommandError(f"{option}: cannot read {path}: {error.strerror}") from None
