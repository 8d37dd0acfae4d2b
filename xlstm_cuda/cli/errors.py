"""The two ways a command ends early. Both print one line and no traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Something outside the program is not as it must be: a file, a folder, a device. Exit code 1."""


class UsageError(Exception):
    """Options that do not go together. Exit code 2, like the errors of argparse."""
