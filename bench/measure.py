"""One case from gate to records: build every contender, let it through the gate, time those that passed by turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import roofline
from .contenders import Case, Prepared, Unusable
from .environment import environment
from .gate import Gate, Truths, incoming, run_gate
from .records import Record
from .timing import Timing, interleaved, ratio, wall_clock
from .timing_cuda import EventClock, captured

TRUTHS: Truths = {}  #: of every gate shape so far


@dataclass
class Outcome:
    """What a case gave: its records, and for every contender without a time the reason."""

    case: Case
    records: list[Record] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    red: list[str] = field(default_factory=list)


def call_of(prepared: Prepared, backward: bool) -> Callable[[], object]:
    """The timed call: forward, or forward and the gradients of every leaf with a fixed incoming gradient."""
    if not backward:
        return torch.no_grad()(prepared.forward)
    leaves = list(prepared.leaves.values())
    with torch.no_grad():
        dout = incoming(prepared.forward())

    def forward_and_backward() -> object:
        return torch.autograd.grad(prepared.forward(), leaves, dout)

    return forward_and_backward


def measure(case: Case, device: torch.device, seconds: float, show: Callable[[str], None] = lambda _: None) -> Outcome:
    """Gate and times of a case, with ``seconds`` for its samples. ``show`` hears what happens next."""
    outcome, gates, calls = Outcome(case), {}, {}
    prepared: dict[str, Prepared] = {}
    for contender in case.contenders:
        show(f"gate: {contender.name}")
        if reason := contender.too_slow(case.shape):
            outcome.left_out[contender.name] = reason
            continue
        try:
            gate = run_gate(case, contender, device, TRUTHS)
            if not gate.green:
                outcome.red.append(contender.name)
                outcome.left_out[contender.name] = f"RED GATE, not timed: {gate}"
                continue
            prepared[contender.name] = contender.build(case.shape, device, case.dtype)
            call = call_of(prepared[contender.name], case.backward)
            call()  # the first call at this shape: compilers, autotuners, and memory that may not suffice
            calls[contender.name], gates[contender.name] = call, gate
        except Unusable as reason:
            outcome.left_out[contender.name] = str(reason)
        except Exception as error:  # one contender that fails must not cost the others their times
            outcome.left_out[contender.name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    prepared = {name: one for name, one in prepared.items() if name in calls}
    show("timing " + ", ".join(calls))
    clock = wall_clock if device.type == "cpu" else EventClock()
    times = {"time": interleaved(calls, clock, seconds)}
    if device.type == "cuda":
        graphs = {}
        for name, call in calls.items():
            try:
                replay = captured(call)
                replay()
                graphs[name] = replay
            except Exception:  # an official kernel that synchronises cannot be captured: it has no graph time
                torch.cuda.synchronize()
        times["graph time"] = interleaved(graphs, clock, seconds)
        del graphs
        torch.cuda.empty_cache()
    least: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(case.work_of(one) for one in case.contenders if one.truth and one.name in prepared):
        show(f"counting the work of {name}")
        try:
            least[name] = roofline.of(prepared[name], case.backward, device.type, case.dtype) if name in prepared else {}
        except Exception as error:  # the times are there; this is only what they are compared with
            outcome.left_out[f"roofline of {name}"] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for metric, timings in times.items():
        outcome.records += timed_records(case, device, metric, timings, gates, least)
    for name, one in prepared.items():
        if one.state_bytes is not None:
            outcome.records.append(counted_record(case, device, "state", name, float(one.state_bytes), gates[name]))
    return outcome


def timed_records(
    case: Case,
    device: torch.device,
    metric: str,
    timings: dict[str, Timing],
    gates: dict[str, Gate],
    least: dict[str, dict[str, float]],
) -> list[Record]:
    found = []
    for contender in case.contenders:
        if (timing := timings.get(contender.name)) is None:
            continue
        record = counted_record(case, device, metric, contender.name, timing.median, gates[contender.name])
        record.minimum, record.maximum, record.runs = timing.minimum, timing.maximum, timing.runs
        if contender.against and contender.against in timings:
            record.ratios = {contender.against: ratio(timing, timings[contender.against])}
        if contender.truth is not None:
            record.roofline = least.get(case.work_of(contender), {})
        found.append(record)
    return found


def counted_record(case: Case, device: torch.device, metric: str, name: str, value: float, gate: Gate) -> Record:
    """A record of one figure."""
    return Record(
        suite=case.suite, group=case.group, case=case.name, shape=dict(case.shape),
        dtype=str(case.dtype).removeprefix("torch."), passes=case.passes, contender=name, device=device.type, metric=metric,
        median=value, minimum=value, maximum=value, runs=1, tokens=case.tokens, gate=gate.as_record(),
        environment=environment(),
    )  # fmt: skip
