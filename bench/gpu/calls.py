"""Single calls for tools that watch a process: `python -m bench.gpu.calls small | mlstm | slstm [--backend cuda]`.

small is a grid of tiny shapes through every kernel, for compute-sanitizer; the others are one call of a benchmark's shape, for
ncu.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from xlstm_cuda import functional


def mlstm(B: int, S: int, NH: int, DHQK: int, DHHV: int, dtype: torch.dtype, device: str, backend: str) -> None:
    """A sequence forward and backward with states, then a step."""
    q, k, v, i, f, *state = (
        torch.randn(shape, device=device, dtype=dtype if index < 5 else torch.float32, requires_grad=True)
        for index, shape in enumerate(
            [(B, S, NH, DHQK)] * 2 + [(B, S, NH, DHHV)] + [(B, S, NH)] * 2 + [(B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH)]
        )
    )
    h, last = functional.mlstm(q, k, v, i, f, state=state, return_state=True, backend=backend)
    loss = h.float().square().sum() + last.C.sum() + last.n.sum()
    finite("mlstm", h, *torch.autograd.grad(loss, (q, k, v, i, f, *state)))
    with torch.no_grad():
        q, k, v, i, f = (x[:, 0] for x in (q, k, v, i, f))
        finite("mlstm_step", functional.mlstm_step(q, k, v, i, f, last, backend=backend)[0])


def slstm(B: int, S: int, NH: int, DH: int, dtype: torch.dtype, device: str, backend: str) -> None:
    """A sequence forward and backward with a state, then a step. A build without sLSTM kernels says so."""
    x = torch.randn(B, S, 4, NH, DH, device=device, dtype=dtype, requires_grad=True)
    R = (torch.randn(4, NH, DH, DH, device=device) / DH**0.5).to(dtype).requires_grad_()
    b = torch.randn(4, NH, DH, device=device, dtype=dtype, requires_grad=True)
    try:
        h, last = functional.slstm(x, R, b, return_state=True, backend=backend)
    except RuntimeError as error:
        if "no sLSTM kernels" not in str(error):
            raise
        print(f"slstm DH{DH}: {error}")
        return
    finite("slstm", h, *torch.autograd.grad(h.float().square().sum() + last.c.sum(), (x, R, b)))
    with torch.no_grad():
        finite("slstm_step", functional.slstm_step(x[:, 0], R, b, last, backend=backend)[0])


def finite(name: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise RuntimeError(f"{name}: results are not finite")


def small() -> Iterator[tuple[str, dict[str, int]]]:
    """Every tile of the walk in either role, tails of chunks, head dims that are padded; every kernel of the sLSTM."""
    for S, (DHQK, DHHV) in product((1, 65), ((24, 64), (64, 128), (128, 256), (256, 72))):
        yield "mlstm", {"B": 2, "S": S, "NH": 1, "DHQK": DHQK, "DHHV": DHHV}
    for S, DH in product((1, 9), (40, 64, 128, 256)):
        yield "slstm", {"B": 3, "S": S, "NH": 2, "DH": DH}


BENCHMARK_SHAPES = {
    "mlstm": {"cuda": dict(B=8, S=8192, NH=16, DHQK=128, DHHV=256), "cpu": dict(B=1, S=130, NH=2, DHQK=128, DHHV=256)},
    "slstm": {"cuda": dict(B=16, S=1024, NH=3, DH=256), "cpu": dict(B=2, S=33, NH=3, DH=256)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("small", "mlstm", "slstm"))
    parser.add_argument("--backend", choices=("cuda", "cpu", "simt"), default="cuda")
    options = parser.parse_args()
    device = "cuda" if options.backend == "cuda" else "cpu"
    calls = {"mlstm": mlstm, "slstm": slstm}
    wanted = small() if options.what == "small" else [(options.what, BENCHMARK_SHAPES[options.what][device])]
    torch.manual_seed(0)
    count = 0
    for name, shape in wanted:
        for dtype in (torch.bfloat16, torch.float32) if options.what == "small" else (torch.bfloat16,):
            calls[name](**shape, dtype=dtype, device=device, backend=options.backend)  # type: ignore[operator]
            count += 1
    print(f"{options.what}: {count} calls on {options.backend}, all finite")


if __name__ == "__main__":
    main()
