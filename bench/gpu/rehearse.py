"""The benchmarks of a GPU, as far as a machine without one goes: peers, shapes, operands without memory.

`python -m bench.gpu.rehearse [peers | SUITE | all] [--quick]` builds every contender of every case on the CPU at its gate's small
shape, and at its full shape on fake tensors, which have no data, to add up the bytes of the operands.
"""

from __future__ import annotations

import argparse

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import peers
from ..contenders import Case, Contender, Unusable
from ..suites import SUITES

GPU_BYTES = 78 << 30  #: of the smallest GPU that the shapes are meant for
WORK = (
    12  #: operands and results, gradients, saved tensors, copies in a peer's layout: a case needs at most this many times its own
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("suite", choices=("peers", "all", *SUITES))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    print("\n".join(peers.report()))
    if options.suite == "peers":
        return 0
    names = list(SUITES) if options.suite == "all" else [options.suite]
    cases = [case for name in names for case in SUITES[name](torch.device("cuda"), options.quick)]
    problems = [problem for case in cases for problem in rehearse(case)]
    print("\n".join(problems))
    print(f"{len(cases)} cases of {', '.join(names)}: {len(problems)} problems")
    return bool(problems)


def rehearse(case: Case) -> list[str]:
    """What is wrong with a case: one of our contenders fails, or operands do not fit. Peers may miss what only a GPU has."""
    problems = []
    for contender in case.contenders:
        where = f"{case.suite}: {case.name}: {contender.name}"
        is_peer = peers.is_peer(contender.name)
        try:
            contender.build(case.gate_shape, torch.device("cpu"), case.dtype)
            needed = WORK * operand_bytes(case, contender)
        except Exception as error:
            text = f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if is_peer or isinstance(error, Unusable):
                print(text)
            else:
                problems.append(text)
            continue
        if needed > GPU_BYTES:
            problems.append(f"{where}: about {needed / 2**30:.0f} GiB, more than {GPU_BYTES >> 30}")
    return problems


def operand_bytes(case: Case, contender: Contender) -> int:
    """At the full shape; 0 for a module, which fake tensors cannot be moved into: its operands are small."""
    try:
        with FakeTensorMode(), torch.no_grad():
            prepared = contender.build(case.shape, torch.device("cpu"), case.dtype)
    except RuntimeError as error:
        if "swap" not in str(error):
            raise
        return 0
    return sum(leaf.numel() * leaf.element_size() for leaf in prepared.leaves.values())


if __name__ == "__main__":
    raise SystemExit(main())
