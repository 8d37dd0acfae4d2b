"""One step of the sLSTM kernels in machine code, without a GPU: `python -m bench.slstm_steps`.

Compiles the kernels, finds in those of bfloat16 the loop over the steps (the shortest with tensor-core instructions; it holds the
one barrier of a step), and prints per warp the instructions on its longest path: a row's first or last step with resets, every
wait found open. For the resident kernels also the longest that leaves out the blocks which read or write states, and the flags of
resets, in global memory: that is the usual step, with a cycle estimate. The kinds are those of the usual step, or of the longest
path where there is no other.

The estimate runs the warps of one SM sub-partition in order through a scoreboard. It is a model to compare mappings with, not a
measurement. Assumed, in cycles: one instruction per cycle and sub-partition; float32 pipe 1 per instruction, latency 4; integer
and conversion pipe 2, 5; MUFU 8, 22; HMMA 6.5, 33; shared memory latency 30, one 128-byte wavefront per cycle and SM; global
stores and copies as many wavefronts, never waited for; a barrier 25.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.static.compiler import demangle, find_cuobjdump, find_nvcc
from bench.static.sources import ROOT

FILES = (
    "resident/forward", "resident/backward", "cluster/forward", "cluster/backward", "grid/forward", "grid/backward",
)  # fmt: skip
KINDS = ("HMMA", "LDSM", "MUFU", "BAR", "LDS", "STS", "LDGSTS", "STG", "LDG", "FMA", "IMAD", "ALU", "control")
#       kind: (pipe, cycles between two, latency); None: by the width of the access
PIPES: dict[str, tuple[str | None, float | None, float]] = {
    "FMA": ("fma", 1, 4), "IMAD": ("fma", 2, 4), "ALU": ("alu", 2, 5), "control": (None, 0, 6), "MUFU": ("mufu", 8, 22),
    "HMMA": ("mma", 6.5, 33), "LDSM": ("lsu", None, 32), "LDS": ("lsu", None, 30), "STS": ("lsu", None, 1),
    "STG": ("lsu", None, 1), "LDGSTS": ("lsu", None, 1), "LDG": ("lsu", None, 500), "SHFL": ("lsu", 4, 24), "BAR": (None, 0, 0),
}  # fmt: skip
CLOCK_GHZ, BARRIER = 1.755, 25
STORES = {"Forward": 3, "Backward": 4}  # of a row and thread in a usual step: h, tails, cells; dx of four gates


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # without its predicate
    predicate: str | None

    @property
    def kind(self) -> str:
        name = self.text.split()[0].split(".")[0]
        if name in ("HMMA", "MUFU", "LDSM", "LDS", "STS", "LDGSTS", "STG", "LDG", "SHFL", "BAR", "IMAD"):
            return name
        if name in ("FFMA", "FMUL", "FADD", "HADD2", "HFMA2", "HMUL2"):
            return "FMA"
        if name in ("BRA", "NOP", "BSSY", "BSYNC", "WARPSYNC", "LDGDEPBAR", "DEPBAR", "EXIT", "ISETP", "PLOP3") or name[0] == "U":
            return "control"
        return "ALU"

    @property
    def words(self) -> int:
        operation = self.text.split()[0]
        return 4 if ".128" in operation or ".M88.4" in operation else 2 if ".64" in operation or ".WIDE" in operation else 1

    @property
    def target(self) -> int | None:
        found = re.match(r"BRA\b.*?0x([0-9a-f]+)", self.text)
        return int(found[1], 16) if found else None


def functions(sass: str) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in sass.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current = found.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?(U?P\w+)\s+)?(.*?)\s*;", line):
            current.append(Instruction(int(match[1], 16), match[3], match[2]))
    return found


def step(instructions: list[Instruction]) -> list[Instruction]:
    """The shortest loop that holds tensor-core instructions; empty without one."""
    products = [i.address for i in instructions if i.kind == "HMMA"]
    loops = [
        (i.target, i.address)
        for i in instructions
        if i.target is not None and i.target < i.address and any(i.target <= a <= i.address for a in products)
    ]
    if not loops:
        return []
    start, end = min(loops, key=lambda loop: loop[1] - loop[0])
    body = [i for i in instructions if start <= i.address <= end]
    barriers = sum(i.kind == "BAR" for i in body)
    assert barriers == 1, f"a loop with {barriers} barriers is not one over the steps"
    return body


def rare(body: list[Instruction], stores: int) -> set[int]:
    """Addresses in blocks that load from global memory, or store there more often than a usual step does for one row."""
    borders = {i.target for i in body} | {after.address for i, after in pairwise(body) if i.target is not None}
    found: set[int] = set()
    block: list[Instruction] = []
    for instruction in [*body, None]:
        if instruction is None or instruction.address in borders:
            kinds = [i.kind for i in block]
            if "HMMA" not in kinds and ("LDG" in kinds or kinds.count("STG") > stores):
                found |= {i.address for i in block}
            block = []
        if instruction is not None:
            block.append(instruction)
    return found


def longest_path(body: list[Instruction], without: set[int]) -> list[Instruction]:
    """From the loop's head to its end along the branches that give most instructions, around those of `without`."""
    index = {instruction.address: i for i, instruction in enumerate(body)}
    size, following = [0] * (len(body) + 1), [len(body)] * len(body)
    for i in reversed(range(len(body) - 1)):
        ways = []
        target = body[i].target
        if target is not None and index.get(target, -1) > i:  # others leave the loop, or wait again
            ways.append(index[target])
        if target is None or body[i].predicate is not None:
            ways.append(i + 1)
        ways = ways or [len(body)]
        following[i] = max(ways, key=lambda way: size[way])
        size[i] = size[following[i]] + (-len(body) if body[i].address in without else 1)
    taken, i = [], 0
    while i < len(body):
        taken.append(body[i])
        i = following[i]
    return taken


def registers(operand: str, count: int) -> list[str]:
    found = re.search(r"\bR(\d+)", operand)
    return [f"R{int(found[1]) + i}" for i in range(count)] if found else []


def operands(i: Instruction) -> tuple[list[str], list[str]]:
    """Registers and predicates that an instruction reads, and those it writes."""
    _, _, rest = i.text.partition(" ")
    names = [name.strip() for name in rest.split(",")] if rest else []
    reads, writes = [i.predicate] if i.predicate else [], []
    if i.kind == "HMMA":
        writes = registers(names[0], 4)
        reads += registers(names[1], 4) + registers(names[2], 2) + registers(names[3], 4)
    elif i.kind in ("STS", "STG", "LDGSTS"):
        for name in names:
            last = name is names[-1] and i.kind != "LDGSTS"
            reads += registers(name, 2 if ".64" in name else i.words if last else 1)
    elif i.kind == "BAR" or i.target is not None:
        reads += re.findall(r"\bU?P\d\b", rest)
    elif names:
        width = i.words if i.kind in ("LDS", "LDSM", "LDG") or ".WIDE" in i.text else 1
        writes = registers(names[0], width) + re.findall(r"^U?P\d$", names[0])
        if len(names) > 1 and "SETP" in i.text:
            writes += re.findall(r"^U?P\d$", names[1])
        for name in names[1:]:
            reads += registers(name, 2 if ".64" in name or ".WIDE" in i.text else 1) + re.findall(r"\bU?P\d\b", name)
    return reads, writes


def cycles(body: list[Instruction], warps: int, steps: int = 6) -> float:
    """Of one step in the steady state, by the scoreboard."""
    program = [(i, *operands(i)) for i in body]
    mine, busy = max(1, (warps + 3) // 4), min(4, warps)  # warps of one sub-partition; sub-partitions at work
    total, position, issued = len(program) * steps, [0] * mine, [0.0] * mine
    ready: list[dict[str, float]] = [collections.defaultdict(float) for _ in range(mine)]
    free: dict[str, float] = collections.defaultdict(float)
    waiting: dict[int, float] = {}
    releases, port = [], 0.0
    while any(p < total for p in position):
        best = None
        for warp in range(mine):
            if position[warp] >= total or warp in waiting:
                continue
            instruction, reads, _ = program[position[warp] % len(program)]
            at = max([issued[warp] + 1, port, *(ready[warp][r] for r in reads)])
            pipe = PIPES[instruction.kind][0]
            if pipe:
                at = max(at, free[pipe])
            if best is None or at < best[0]:
                best = at, warp
        if best is None:  # everyone is at the barrier
            released = max(waiting.values()) + BARRIER
            releases.append(released)
            issued = [released] * mine
            waiting.clear()
            continue
        at, warp = best
        instruction, _, writes = program[position[warp] % len(program)]
        pipe, interval, latency = PIPES[instruction.kind]
        if interval is None:
            interval = instruction.words * busy
        if pipe:
            free[pipe] = at + interval
        for name in writes:
            ready[warp][name] = at + latency + (interval if pipe == "lsu" else 0)
        issued[warp], port = at, at + 1
        position[warp] += 1
        if instruction.kind == "BAR":
            waiting[warp] = at
    return (releases[-1] - releases[1]) / (len(releases) - 2)


def warps_of(kernel: str) -> int:
    """From the tile in its name: ForwardTile<Element, DH, units of a thread, stages>, BackwardTile<Element, DH, stages>, or
    TensorForward, TensorBackward<Element, units, warps, ...>."""
    if split := re.search(r"Tensor\w+<\w+, \d+, (\d+)", kernel):
        return int(split[1])
    if forward := re.search(r"ForwardTile<\w+, (\d+), (\d+), \d+>", kernel):
        return int(forward[1]) // (8 * int(forward[2]))
    backward = re.search(r"BackwardTile<\w+, (\d+), \d+>", kernel)
    assert backward, kernel
    return int(backward[1]) // 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="90a")
    parser.add_argument("--show", default="", help="print the usual step of kernels whose name contains this")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        raise SystemExit("slstm_steps needs nvcc: set CUDA_HOME to a CUDA toolkit")
    cuobjdump = find_cuobjdump()
    if not cuobjdump:
        raise SystemExit("slstm_steps needs cuobjdump: a CUDA toolkit, or the wheels nvidia-cuda-cuobjdump and nvidia-nvdisasm")
    target = f"arch=compute_{arguments.arch},code=sm_{arguments.arch}"
    print(f"{'usual':>7} {'longest':>8} {'cycles':>6} {'us':>5} " + " ".join(f"{k:>6}" for k in KINDS) + "  kernel, warps")
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            cubin, source = Path(folder) / f"{name.replace('/', '_')}.cubin", ROOT / f"csrc/slstm/{name}.cu"
            command = [
                nvcc,
                "-std=c++17",
                "-O3",
                f"-I{ROOT / 'csrc'}",
                "-gencode",
                target,
                "-cubin",
                "-o",
                str(cubin),
                str(source),
            ]
            subprocess.run(command, check=True)
            path_with_tools = f"{Path(cuobjdump).parent}:/usr/bin:/bin"  # cuobjdump calls nvdisasm
            sass = subprocess.run(
                [cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True, env={"PATH": path_with_tools}
            ).stdout
            for mangled, instructions in functions(sass).items():
                kernel = demangle(mangled)
                body = step(instructions)
                if not body or "__half" in kernel:
                    continue
                usual = most = longest_path(body, set())
                warps, figures = warps_of(kernel), f"{'':7} {len(most):8} {'':6} {'':5}"
                if "resident" in kernel:
                    usual = longest_path(body, rare(body, STORES["Forward" if "Forward" in kernel else "Backward"]))
                    estimate = cycles(usual, warps)
                    figures = f"{len(usual):7} {len(most):8} {estimate:6.0f} {estimate / CLOCK_GHZ / 1000:5.2f}"
                count = collections.Counter(i.kind for i in usual)
                kinds = " ".join(f"{count[k]:6}" for k in KINDS)
                print(f"{figures} {kinds}  {kernel.removeprefix('slstm::')}, {warps}")
                if arguments.show and arguments.show in kernel:
                    print("\n".join(f"    {i.address:6x}  {i.text}" for i in usual))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
