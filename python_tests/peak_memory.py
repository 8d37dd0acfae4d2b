"""How much memory a block of code adds to the process at its peak (Linux)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """``bytes`` is set when the block ends."""

    bytes: int = 0


@contextmanager
def measured() -> Iterator[Peak]:
    """The highest resident memory inside the block above that at its start, freed memory given back to the system first."""
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")  # the high-water mark starts again from here
    before, peak = resident("VmRSS"), Peak()
    yield peak
    peak.bytes = resident("VmHWM") - before


def resident(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS, VmHWM (its peak), RssAnon (without mapped files)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
