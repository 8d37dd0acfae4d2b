"""What the mLSTM walks move and multiply, counted by the host executor: `python -m bench.mlstm_walks`. No GPU, no clock.

For every tile: bytes between global memory and the blocks per step and head, over the fewest that any plan with these blocks
moves (A and B once per block of columns of O) and over the fewest at all (A and B once, as L2 serves the blocks of one head);
wavefronts of shared memory over the fewest (ldmatrix and accesses of 16 bytes), sectors over the fewest; tensor-core
instructions and bytes of shared memory read per step and head.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from xlstm_cuda import functional, simt

USES = ("h", "dq", "dk", "dv")
# sm, DHQK, DHHV: every tile occurs. Chunks have 64 steps up to head dims of 256, else 32; a block has 99 KiB on sm_86, 163 on
# sm_80, 227 on sm_90.
SHAPES = ((86, 64, 64), (86, 128, 256), (80, 128, 256), (90, 128, 256), (90, 256, 512), (90, 512, 64))


@dataclass(frozen=True)
class Walk:
    """One walk of one sequence and head; bytes and counts of the whole launch, without the state at the ends of the sequence."""

    use: str
    S: int
    c: int
    o: int
    blocks: int
    shared_kib: float
    moved: int
    fewest_per_block: int
    fewest: int
    mma: int
    shared_bytes_read: int
    wide_conflicts: float
    extra_wavefronts: float  #: of all shared accesses, those beyond one per 128 bytes, per tensor-core product
    sectors: float

    @property
    def ratio_per_block(self) -> float:
        return self.moved / self.fewest_per_block

    @property
    def ratio(self) -> float:
        return self.moved / self.fewest


def measure(sm: int, DHQK: int, DHHV: int, dtype: torch.dtype = torch.bfloat16, S: int = 256) -> dict[str, Walk]:
    """The four walks of one forward and backward on backend simt, by use."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, S, 1, DHQK), (1, S, 1, DHQK), (1, S, 1, DHHV), (1, S, 1), (1, S, 1))
    operands = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    with simt.options(sm=sm), simt.profile() as launches:
        h = functional.mlstm(*operands, backend="simt")
        assert isinstance(h, torch.Tensor)
        h.float().square().sum().backward()
    name = str(dtype).removeprefix("torch.")
    by_name = {launch["kernel"]: launch for launch in launches}
    return {use: _walk(use, by_name[f"mlstm_walk_{use}<{name}>"], S, DHQK, DHHV) for use in USES}


def _walk(use: str, launch: dict[str, Any], S: int, DHQK: int, DHHV: int) -> Walk:
    c, o = (DHQK, DHHV) if use in ("h", "dv") else (DHHV, DHQK)
    blocks = launch["grid"][0]
    row_dots = 2 * S * o if use in ("dq", "dk") else 0  # q or k again, for q.dq or k.dk
    state = 4 * DHQK * DHHV if use in ("h", "dk") else 0  # the final C, dC0
    # Reads of two neighbours of the record, the same for eight lanes, count as two wavefronts for 32 bytes: they are left out.
    shared = [line for line in launch["lines"] if line["space"] == "shared"]
    wide = [line for line in shared if line["bytes"] >= 512 * line["requests"]]
    return Walk(
        use=use, S=S, c=c, o=o, blocks=blocks, shared_kib=launch["shared_bytes"] / 1024,
        moved=launch["global_bytes_read"] + launch["global_bytes_written"] - state,
        fewest_per_block=2 * S * (2 * c * blocks + 2 * o) + row_dots,
        fewest=2 * S * (2 * c + 2 * o) + row_dots,
        mma=launch["mma"],
        shared_bytes_read=sum(line["bytes"] for line in wide),
        wide_conflicts=sum(line["wavefronts"] for line in wide) / sum(line["bytes"] / 128 for line in wide),
        extra_wavefronts=sum(line["wavefronts"] * (1 - 1 / line["ratio"]) for line in shared) / launch["mma"],
        sectors=launch["sector_factor"],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=256)
    steps = parser.parse_args().steps
    print("| GPU | DHQK / DHHV | walk | blocks | KiB | bytes per step | over the fewest per block | at all | mma per step |"
          " shared bytes per step | wavefronts | sectors |")  # fmt: skip
    print("| --- " * 12 + "|")
    for sm, DHQK, DHHV in SHAPES:
        for walk in measure(sm, DHQK, DHHV, S=steps).values():
            print(
                f"| sm_{sm} | {DHQK} / {DHHV} | {walk.use} | {walk.blocks} | {walk.shared_kib:.0f} | {walk.moved / steps:.0f} |"
                f" {walk.ratio_per_block:.3f} | {walk.ratio:.2f} | {walk.mma / steps:.1f} |"
                f" {walk.shared_bytes_read / steps:.0f} | {walk.wide_conflicts:.3f} | {walk.sectors:.3f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
