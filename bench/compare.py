"""What got slower between two sets of results."""

from __future__ import annotations

from collections.abc import Sequence

from .records import Record

SLOWER = 1.10  #: a time that grew by more than this is shown


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[tuple[float, Record, Record]]:
    """(new over old, old, new) of every time that both sets hold, the slowest first."""
    before = {record.key: record for record in old if record.metric.endswith("time")}
    pairs = [(before[record.key], record) for record in new if record.key in before]
    return sorted(((after.median / earlier.median, earlier, after) for earlier, after in pairs), key=lambda change: -change[0])


def report(old: Sequence[Record], new: Sequence[Record]) -> str:
    """For people. A change is only called slower where the new runs lie apart from the old ones."""
    found = changes(old, new)
    if not found:
        return "compare: the two sets hold no measurement of the same thing"
    lines = []
    machines = {place(record) for record in old} | {place(record) for record in new}
    if len(machines) > 1:
        lines.append(
            "compare: the sets are of different machines or threads, so the times do not compare: " + "; ".join(machines)
        )
    slower = [change for change in found if change[0] > SLOWER and change[2].minimum > change[1].median]
    for factor, before, after in slower:
        what = f"{after.suite}: {after.case}, {after.contender}, {after.metric}"
        lines.append(f"SLOWER {factor:.2f}x  {what}: {before.median:.3f} -> {after.median:.3f} ms")
    commits = sorted({str(record.environment.get("commit")) for record in old})
    lines.append(
        f"compare: {len(slower)} of {len(found)} times slower by more than {SLOWER - 1:.0%} than at {', '.join(commits)}"
    )
    return "\n".join(lines)


def place(record: Record) -> str:
    """The machine that a record is of."""
    found = record.environment
    return f"{(found.get('gpu') or {}).get('name') or found.get('processor')}, {found.get('threads')} threads"
