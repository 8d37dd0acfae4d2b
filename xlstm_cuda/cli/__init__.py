"""``python -m xlstm_cuda {info,train,generate}``: the commands and how they end.

Exit code 0 on success, 1 with one line on stderr when something outside is not as it must be, 2 for options that do not fit.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from . import interrupts
from .errors import CommandError, SaidElsewhere, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; ``argv`` defaults to the arguments of the process. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? instead of a traceback
    if sys.stdout is None:  # closed by the caller
        return _fail("error: standard output is closed", 1)
    try:
        _run(argv)
    except UsageError as error:
        return _fail(f"error: {error}", 2)
    except CommandError as error:
        return _fail(f"error: {error}", 1)
    except SaidElsewhere as error:
        return error.code
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        return _fail("error: out of memory; a smaller --batch-size, --context-length or --embedding-dim needs less", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:  # the reader of a pipe has left, and knows
        _discard_output()
        return 1
    except OSError as error:  # of a file that no command looks after more closely, standard output among them
        _discard_output()
        return _fail(f"error: {error}", 1)
    return 0


def _run(argv: Sequence[str] | None) -> None:
    from . import arguments

    try:
        options = arguments.parser().parse_args(argv)
    except SystemExit:
        sys.stdout.flush()  # of --help
        raise
    if options.command == "info":
        from . import info as command
    elif options.command == "train":
        from . import train as command  # type: ignore[no-redef]
    else:
        from . import generate as command  # type: ignore[no-redef]
    interrupts.imported()
    command.run(options)
    sys.stdout.flush()


def _discard_output() -> None:
    """What could not be written is given up; Python would try once more at the end, and complain in its own words."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # a stream without a file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"xlstm_cuda: {message}", file=sys.stderr)
    return code
