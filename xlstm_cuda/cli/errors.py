"""The ways a command ends early. They print one line and no traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Something outside the program is not as it must be: a file, a folder, a device. Exit code 1."""


class UsageError(Exception):
    """Options that do not go together. Exit code 2, like the errors of argparse."""


class SaidElsewhere(Exception):
    """Another process of the same run prints the line; this one ends with the same exit code and prints nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
