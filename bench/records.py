"""Results as JSON lines: one record per measurement, each with everything needed to read it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "xlstm_cuda bench 1"
FILE = "results.jsonl"


class NotOurResults(ValueError):
    """A file that `python -m bench` has not written."""


@dataclass
class Record:
    """One measurement of one contender in one case.

    metric: "time" (ms a call), "graph time" (ms a replay of the call as a CUDA graph), "memory" (MiB above the operands),
        "state" (bytes).
    median, minimum, maximum, runs: of the samples; a metric that is counted has runs 1.
    ratios: this contender's time over that of the named one, both from this run.
    gate: verdict, errors and bound of the comparison with the reference.
    roofline: of a time, the case's work and the machine's rates (roofline.py); empty where another function is computed.
    """

    suite: str
    group: str
    case: str
    shape: dict[str, int]
    dtype: str
    passes: str
    contender: str
    device: str
    metric: str
    median: float
    minimum: float
    maximum: float
    runs: int
    tokens: int
    gate: dict[str, Any]
    ratios: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    roofline: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What the record measures; two records with the same key are two results for the same question."""
        return self.suite, self.case, self.passes, self.contender, self.device, self.metric


def save(path: Path, records: Iterable[Record]) -> None:
    """Writes the records; those of an earlier run for the same questions are replaced, others stay."""
    kept = {record.key: record for record in load(path)} if path.exists() else {}
    kept |= {record.key: record for record in records}
    lines = [json.dumps({"format": FORMAT, **asdict(record)}) for record in kept.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def load(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        NotOurResults: the file is missing, or not one that `save` wrote.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotOurResults(f"{path}: not readable as text ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            found.append(Record(**content))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotOurResults(
                f"{path}, line {number}: got {line[:60]!r}, expected a record of format {FORMAT!r} as `python -m bench` writes it"
            ) from None
    return found
