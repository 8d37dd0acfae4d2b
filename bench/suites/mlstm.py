"""The mLSTM cell: q, k, v and gates in, h out, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xlstm_cuda import functional

from .. import peers
from ..contenders import Build, Case, Contender, Prepared, Shape, Unusable
from ..draw import Normal

NAMES = ("q", "k", "v", "i", "f")
#: B, S, NH, D on a CPU beside the lengths: short, many rows, small and wide heads, no multiple of a chunk, few heads.
CPU_SHAPES = (
    (8, 32, 4, 64),
    (1, 128, 4, 64),
    (8, 128, 4, 64),
    (2, 64, 4, 64),
    (4, 256, 4, 32),
    (1, 512, 2, 256),
    (1, 2048, 4, 64),
    (3, 100, 5, 48),
)


def operands(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """q, k (B, S, NH, DHQK), v (B, S, NH, DHHV), i, f (B, S, NH); forget gates around 3, as trained models have them.

    Rounded to the dtype that is timed even where a float64 truth is computed, so that every contender reads the same numbers.
    """
    B, S, NH, DHQK, DHHV = (shape[axis] for axis in ("B", "S", "NH", "DHQK", "DHHV"))
    normal = Normal(device)
    sizes = (B, S, NH, DHQK), (B, S, NH, DHQK), (B, S, NH, DHHV), (B, S, NH), (B, S, NH)
    mean = {"f": 3}
    return {
        name: (normal(*size) + mean.get(name, 0)).bfloat16().to(dtype).requires_grad_() for name, size in zip(NAMES, sizes)
    }  # fmt: skip


def ours(backend: str | None = None, **options: object) -> Build:
    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        leaves = operands(shape, device, dtype)
        return Prepared(lambda: functional.mlstm(*leaves.values(), backend=backend, **options), leaves)  # type: ignore[arg-type, return-value]

    return build


def heads_first(function: Callable[..., Tensor]) -> Build:
    """A peer that takes (B, NH, S, D): it gets its own layout, so that no transposition is timed."""

    def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
        leaves = {
            name: x.detach().transpose(1, 2).contiguous().requires_grad_() for name, x in operands(shape, device, dtype).items()
        }
        return Prepared(lambda: function(*leaves.values()), leaves, canonical=lambda x: x.transpose(1, 2))

    return build


def official(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """The parallel form of the official package, the only one that its layers use: a matrix of S x S."""
    backends = peers.load("xlstm.blocks.mlstm.backends")
    S = q.shape[2]
    causal = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
    return backends.parallel_stabilized_simple(q, k, v, i.unsqueeze(-1), f.unsqueeze(-1), lower_triangular_matrix=causal)


def mlstm_kernels(name: str) -> Callable[..., Tensor]:
    """A kernel of mlstm_kernels by its name in the registry, called as its README does, with chunks of 128 or fewer (above, its
    gradients are wrong)."""

    def call(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        registry = peers.load("mlstm_kernels.torch.chunkwise").registry
        if name not in registry:
            raise Unusable(f"mlstm_kernels has no {name} here (it needs triton)")
        size = 128 if "xl_chunk" in name else 64
        if q.shape[2] % size:
            raise Unusable(f"takes whole chunks of {size} steps")
        return registry[name](q=q, k=k, v=v, i=i, f=f, chunk_size=size, return_last_states=False, autocast_kernel_dtype=q.dtype)

    return call


def simple_gla(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """flash-linear-attention's chunked linear attention with one decay per head: the mLSTM without input gate and normaliser."""
    chunk = peers.load("fla.ops.simple_gla").chunk_simple_gla
    leaves = {name: x for name, x in operands(shape, device, dtype).items() if name != "i"}

    def forward() -> Tensor:
        q, k, v, f = leaves.values()
        return chunk(q, k, v, torch.nn.functional.logsigmoid(f))[0]

    return Prepared(forward, leaves)


def mamba2(shape: Shape, device: torch.device, dtype: torch.dtype) -> Prepared:
    """mamba_ssm's scan of Mamba-2 with as many heads, its state as wide as ours."""
    scan = peers.load("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    given = operands(shape, device, dtype)
    A = -torch.ones(shape["NH"], device=device)
    leaves = {"x": given["v"], "dt": given["f"], "B": given["k"], "C": given["q"]}

    def forward() -> Tensor:
        x, dt, B, C = leaves.values()
        return scan(x, dt, A, B, C, chunk_size=128, dt_softplus=True)

    return Prepared(forward, leaves)


def cases(device: torch.device, quick: bool) -> list[Case]:
    truths = {"exact": ours("reference"), "detached": ours("reference", normalizer_grad="detached")}
    baseline = f"xlstm_cuda {device.type}"
    if device.type == "cpu":
        contenders = (
            Contender(baseline, ours()),
            Contender("reference, step by step", ours("reference"), "exact", baseline, {"S": 256}),
            Contender("xlstm, parallel", heads_first(official), "exact", baseline, {"S": 2048}),
            Contender(
                "mlstm_kernels, native", heads_first(mlstm_kernels("native_autograd")), "exact", baseline, {"S": 4096}
            ),
        )  # fmt: skip
        lengths = (256, 1024) if quick else (256, 1024, 2048, 4096, 8192)
        shapes = [{"B": 1, "S": S, "NH": 4, "DHQK": 64, "DHHV": 64} for S in lengths]
        gate = {"B": 2, "S": 128, "NH": 2, "DHQK": 64, "DHHV": 64}
        found = [Case("mlstm", "cell", shape, gate, contenders, truths) for shape in shapes]
        for B, S, NH, D in CPU_SHAPES[:2] if quick else CPU_SHAPES:
            shape = {"B": B, "S": S, "NH": NH, "DHQK": D, "DHHV": D}
            gate = {**shape, "B": min(B, 2), "S": min(S, 128)}
            for backward in (True, False):
                group = "shapes" if backward else "shapes forward"
                found.append(Case("mlstm", group, shape, gate, contenders, truths, backward=backward))
        return found
    on_gpu = (
        Contender(baseline, ours()),
        Contender("mlstm_kernels xl_chunk", heads_first(mlstm_kernels("triton_xl_chunk")), "detached", baseline),
        Contender("mlstm_kernels limit_chunk", heads_first(mlstm_kernels("triton_limit_chunk")), "detached", baseline),
        Contender("mlstm_kernels native", heads_first(mlstm_kernels("native_custbw")), "detached", baseline, {"S": 8192}),
        Contender("xlstm parallel", heads_first(official), "exact", baseline, {"S": 2048}),
        Contender("fla simple_gla", simple_gla, None, baseline),
        Contender("mamba_ssm SSD", mamba2, None, baseline),
    )
    found = []
    widths = {"A": (16, 128, 256), "B": (8, 256, 512), "64": (64, 64, 64), "128": (32, 128, 128)}
    many = (2048, 8192) if quick else (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    for group, (NH, DHQK, DHHV) in widths.items():
        gate = {"B": 1, "S": 256, "NH": 2, "DHQK": DHQK, "DHHV": DHHV}
        for S in many if group in "AB" else (8192,):
            shape = {"B": 65536 // S, "S": S, "NH": NH, "DHQK": DHQK, "DHHV": DHHV}
            for backward in (False, True):
                passes = "forward + backward" if backward else "forward"
                found.append(
                    Case("mlstm", f"{group} {passes}", shape, gate, on_gpu, truths, torch.bfloat16, backward)
                )  # fmt: skip
    small = {"B": 1, "S": 256, "NH": 4, "DHQK": 64, "DHHV": 64}
    found.append(Case("mlstm", "small", small, small, on_gpu, truths, torch.bfloat16))
    return found
