"""The sLSTM by the kernels of csrc/slstm, on CUDA tensors or, for tests, on the host executor.

Everything is allocated here and launched on the current stream; nothing synchronises. The recurrence is one launch, forward and
backward; dR is a product over all steps of what the backward launch leaves, db the sum of the parts it leaves.

Rounding: R is taken in x's dtype and b in float32 (the gradients come back in their own dtypes); R h is summed in float32, with h
rounded to x's dtype; gates and states are float32. Of dR's operands dx and h are rounded to x's dtype, its sums are float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import native, simt

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
KERNELS = ("resident", "cluster", "grid")


def saved_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Of the tails and of the cells that forward leaves for backward, by x's dtype."""
    return torch.float32 if dtype == torch.float32 else torch.float16, torch.float32


def saved_shapes(B: int, S: int, NH: int, DH: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the tails (d, sf, u, w of csrc/slstm/cell.cuh) and the cells (c, n)."""
    padded = -(-DH // 8) * 8
    return (B, S, NH, padded, 4), (B, S, NH, padded, 2)


def forward(
    x: Tensor, R: Tensor, b: Tensor | None,
    h0: Tensor | None, c0: Tensor | None, n0: Tensor | None, m0: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None,
    forget_gate: str, save: bool, backend: str, single_step: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """h in x's dtype, the final h, c, n, m in float32, and the saved tails and cells (empty unless `save`).

    `single_step` (S = 1, no resets, nothing saved) takes the decoding kernel, which sums R h in another order.
    """
    call = _Call(x, x.shape, reset, cu_seqlens, forget_gate, backend)
    X, R_, b_ = call.operand(x), call.weight(R), call.bias(b)
    start = [call.state(s) for s in (h0, c0, n0, m0)]
    h = call.empty(call.B, call.S, call.NH, call.DH, dtype=x.dtype)
    last = [call.empty(call.N, call.NH, call.DH) for _ in range(4)]
    tails, cells = (
        call.empty(*shape, dtype=dtype) if save else call.empty(0, dtype=dtype)
        for shape, dtype in zip(saved_shapes(call.B, call.S, call.NH, call.DH), saved_dtypes(x.dtype))
    )
    kernel = "step" if single_step else call.kernel()
    with call.device():
        call.module.slstm_forward(
            **call.common(kernel), **call.workspace(kernel, backward=False),
            x=X.data_ptr(), x_strides=X.stride()[:4], R=R_.data_ptr(), b=_address(b_),
            h0=_address(start[0]), c0=_address(start[1]), n0=_address(start[2]), m0=_address(start[3]), h=h.data_ptr(),
            h_last=last[0].data_ptr(), c_last=last[1].data_ptr(), n_last=last[2].data_ptr(), m_last=last[3].data_ptr(),
            saved_tails=tails.data_ptr() if save else 0, saved_cells=cells.data_ptr() if save else 0,
        )  # fmt: skip
    return call.unpadded(h), *(call.unpadded(s) for s in last), tails, cells


def backward(
    dh: Tensor | None, dh_last: Tensor | None, dc_last: Tensor | None, dn_last: Tensor | None, R: Tensor,
    h0: Tensor | None, c0: Tensor | None, n0: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None,
    tails: Tensor, cells: Tensor, h: Tensor, forget_gate: str, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dx in h's dtype; dR, db, dh0, dc0, dn0, dm0 in float32. A missing incoming gradient is zero."""
    call = _Call(h, (*h.shape[:2], 4, *h.shape[2:]), reset, cu_seqlens, forget_gate, backend)
    R_ = call.weight(R)
    start = [call.state(s) for s in (h0, c0, n0)]
    end = [call.state(s) for s in (dh_last, dc_last, dn_last)]
    dH = None if dh is None else call.operand(dh.to(h.dtype))
    dx = call.empty(call.B, call.S, 4, call.NH, call.DH, dtype=h.dtype)
    first = [call.empty(call.N, call.NH, call.DH) for _ in range(4)]
    kernel = call.kernel()
    parts = -(-call.N // call.module.SLSTM_TILE_ROWS) if kernel == "resident" else call.N
    db_parts = call.empty(parts, 4, call.NH, call.DH)
    with call.device():
        call.module.slstm_backward(
            **call.common(kernel), **call.workspace(kernel, backward=True), R=R_.data_ptr(),
            h0=_address(start[0]), c0=_address(start[1]), n0=_address(start[2]),
            saved_tails=tails.data_ptr(), saved_cells=cells.data_ptr(),
            dh=_address(dH), dh_strides=(0, 0, 0) if dH is None else dH.stride()[:3],
            dh_last=_address(end[0]), dc_last=_address(end[1]), dn_last=_address(end[2]),
            dx=dx.data_ptr(), db_parts=db_parts.data_ptr(),
            dh0=first[0].data_ptr(), dc0=first[1].data_ptr(), dn0=first[2].data_ptr(), dm0=first[3].data_ptr(),
        )  # fmt: skip
    dx = call.unpadded(dx)
    dR, db = _weight_gradient(dx, call.h_before(h, h0)), call.unpadded(db_parts).sum(0)
    return dx, dR, db, *(call.unpadded(s) for s in first)


_forced_kernel: str | None = None
_processors = 0


@contextlib.contextmanager
def forced_kernel(name: str, processors: int = 0) -> Iterator[None]:
    """For tests: "resident", "cluster" or "grid" serves every call inside, forward and backward, whatever the table says.

    processors: the grid kernel counts on no more of them (0: all).
    """
    global _forced_kernel, _processors
    if name not in KERNELS:
        raise ValueError(f"kernel: got {name!r}, expected one of {', '.join(map(repr, KERNELS))}")
    before = _forced_kernel, _processors
    _forced_kernel, _processors = name, processors
    try:
        yield
    finally:
        _forced_kernel, _processors = before


class _Call:
    """Sizes, padding and the common arguments of one forward or backward; DH is rounded up to a multiple of 8."""

    def __init__(
        self,
        like: Tensor,
        shape: tuple[int, ...],
        reset: Tensor | None,
        cu_seqlens: Tensor | None,
        forget_gate: str,
        backend: str,
    ):
        if like.dtype not in DTYPES:
            raise TypeError(f"slstm on {backend}: x: got {like.dtype}, expected {', '.join(map(str, DTYPES))}")
        self.like, self.dtype, self.forget_gate = like, DTYPES[like.dtype], forget_gate
        self.B, self.S, _, self.NH, self.real_DH = shape
        self.DH = -(-self.real_DH // 8) * 8
        self.reset = reset
        self.cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.on_gpu = backend == "cuda"
        self.module: ModuleType = native._C if self.on_gpu else simt.module()

    def device(self) -> contextlib.AbstractContextManager:
        return torch.cuda.device(self.like.device) if self.on_gpu else contextlib.nullcontext()

    def kernel(self) -> str:
        if _forced_kernel is not None:
            return _forced_kernel
        with self.device():
            return self.module.slstm_kernel(self.dtype, self.DH)

    def workspace(self, kernel: str, backward: bool) -> dict[str, Any]:
        if kernel != "grid":
            return {}
        sizes = (self.N, self.S, self.NH, self.DH)
        with self.device():
            size = self.module.slstm_grid_workspace(backward, sizes, self.dtype, _processors)
        self.scratch = self.empty(size, dtype=torch.uint8)  # lives as long as the call
        return {"workspace": self.scratch.data_ptr(), "processors": _processors}

    def common(self, kernel: str) -> dict[str, Any]:
        return {
            "kernel": kernel, "sizes": (self.N, self.S, self.NH, self.DH),
            "cu_seqlens": _address(self.cu_seqlens), "reset": _address(self.reset),
            "reset_strides": (0, 0) if self.reset is None else self.reset.stride(),
            "forget_gate": self.forget_gate, "dtype": self.dtype,
            "stream": torch.cuda.current_stream(self.like.device).cuda_stream if self.on_gpu else 0,
        }  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.like.device)

    def operand(self, x: Tensor) -> Tensor:
        """x as the kernels read it: DH a multiple of 8, unit last stride, rows at multiples of 16 bytes; copied if not."""
        if self.DH != self.real_DH:
            return pad(x, (0, self.DH - self.real_DH)).contiguous()  # of what looks like images, pad keeps channels last
        aligned = x.data_ptr() % 16 == 0 and all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1])
        return x if x.stride(-1) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)

    def weight(self, R: Tensor) -> Tensor:
        more = self.DH - self.real_DH
        R = R.to(self.like.dtype)
        R = (pad(R, (0, more, 0, more)) if more else R).contiguous()
        return R if R.data_ptr() % 16 == 0 else R.clone()

    def bias(self, b: Tensor | None) -> Tensor | None:
        return None if b is None else self.state(b.float())

    def state(self, s: Tensor | None) -> Tensor | None:
        if s is None:
            return None
        return (pad(s, (0, self.DH - self.real_DH)) if self.DH != self.real_DH else s).contiguous()

    def unpadded(self, x: Tensor) -> Tensor:
        return x if self.DH == self.real_DH else x[..., : self.real_DH].contiguous()

    def h_before(self, h: Tensor, h0: Tensor | None) -> Tensor:
        """The h that entered each step: the one before it, the given h at first steps, 0 at resets; (B, S, NH, DH)."""
        start = h.new_zeros((self.N, *h.shape[2:])) if h0 is None else h0.to(h.dtype)
        if self.cu_seqlens is None:
            before = torch.cat((start.unsqueeze(1), h[:, :-1]), 1)[:, : self.S]
        else:  # rows without steps write to one step past the end
            before = torch.cat((h.new_zeros((1, 1, *h.shape[2:])), h), 1)
            borders = self.cu_seqlens.long().clamp(0, self.S)  # as the kernels read them
            at = torch.where(borders[1:] > borders[:-1], borders[:-1], self.S)
            before = before[0].index_put((at,), start)[: self.S].unsqueeze(0)
        return before if self.reset is None else before.masked_fill(self.reset[..., None, None], 0)


def _weight_gradient(dx: Tensor, h_before: Tensor) -> Tensor:
    """dR = dx^T h, one product per gate over all rows and steps; sums and result in float32."""
    B, S, _, NH, DH = dx.shape
    dR = torch.empty((4, NH, DH, DH), dtype=torch.float32, device=dx.device)
    gates, by_head = dx.view(B * S, 4, NH, DH).permute(1, 2, 3, 0), h_before.reshape(B * S, NH, DH).transpose(0, 1)
    on_gpu = dx.device.type == "cuda"
    if not on_gpu:
        gates, by_head = gates.float(), by_head.float()
    # from torch 2.8 on; before, 16-bit operands give a result rounded to 16 bits
    wide = on_gpu and dx.dtype != torch.float32 and hasattr(torch.ops.aten.bmm, "dtype")
    for gate in range(4):
        dR[gate] = torch.bmm(gates[gate], by_head, torch.float32) if wide else torch.bmm(gates[gate], by_head)
    return dR


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
