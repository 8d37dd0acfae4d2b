"""The tables on the terminal: times, ratios, what was left out and why; peak memory."""

from __future__ import annotations

from collections.abc import Sequence

from .measure import Outcome
from .records import Record


def cases(outcome: Outcome) -> str:
    """A case: one line a contender, and one for what else failed."""
    case = outcome.case
    names = [contender.name for contender in case.contenders]
    width = max(map(len, names))
    lines = [f"{case.name}, {case.passes}"]
    by_name = {(record.contender, record.metric): record for record in outcome.records}
    for name in names:
        if name in outcome.left_out:
            lines.append(f"  {name:{width}}  {outcome.left_out[name]}")
            continue
        time = by_name.get((name, "time"))
        if time is None:
            continue
        parts = [f"  {name:{width}}  {milliseconds(time.median)} ms"]
        if graph := by_name.get((name, "graph time")):
            parts.append(f"graph {milliseconds(graph.median)} ms")
        parts.append(f"({time.minimum:.3g} .. {time.maximum:.3g}, {time.runs} run{'s' * (time.runs != 1)})")
        parts.append(f"{1e3 * time.tokens / time.median:>9,.0f} tokens/s")
        if state := by_name.get((name, "state")):
            parts.append(f"state {size(state.median)}")
        parts += [f"{value:.2f}x {against}" for against, value in time.ratios.items()]
        parts.append(gate(time))
        lines.append("  ".join(parts))
    lines += [f"  {what}: {reason}" for what, reason in outcome.left_out.items() if what not in names]
    return "\n".join(lines)


def peaks(records: Sequence[Record]) -> str:
    """Peak memory above the operands: one line a contender, one column a case."""
    columns = list(dict.fromkeys(record.case for record in records))
    found = {(record.contender, record.case): record.median for record in records}
    names = list(dict.fromkeys(record.contender for record in records))
    width = max(map(len, names), default=0)
    lines = ["peak memory of a call above its operands, MiB: " + " | ".join(columns)]
    for name in names:
        values = (found.get((name, case)) for case in columns)
        lines.append(f"  {name:{width}}  " + "  ".join(f"{'-' if value is None else f'{value:,.1f}':>10}" for value in values))
    return "\n".join(lines)


def milliseconds(value: float) -> str:
    return f"{value:9.3f}" if value < 100 else f"{value:9.1f}"


def gate(record: Record) -> str:
    errors = record.gate["errors"]
    return f"[{record.gate['verdict']}" + (f" to {max(errors.values()):.0e}]" if errors else "]")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
