"""The sLSTM by the kernels of csrc/slstm, on CUDA tensors or, for tests, on the host executor.

Everything is allocated here and launched on the current stream; nothing synchronises. The recurrence is one launch, forward and
backward; dR is a product over all steps of what the backward launch leaves, db the sum of the parts it leaves.

Rounding: R is taken in x's dtype and b in float32 (the gradients come back in their own dtypes); R h is summed in float32, with h
rounded to x's dtype; gates and states are float32. Of dR's operands dx and h are rounded to x's dtype, its sums are float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import signatures as sig
from .launch import KernelCall, SLSTMShape, kernel_dtype, multiple_of_8, padded, unpadded

KERNELS = ("resident", "cluster", "grid")


def saved_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Of the tails and of the cells that forward leaves for backward, by x's dtype."""
    return torch.float32 if dtype == torch.float32 else torch.float16, torch.float32


def saved_shapes(B: int, S: int, NH: int, DH: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the tails (d, sf, u, w of csrc/slstm/cell.cuh) and the cells (c, n)."""
    return (B, S, NH, multiple_of_8(DH), 4), (B, S, NH, multiple_of_8(DH), 2)


def forward(operands: sig.SLSTMOperands, options: sig.SLSTMOptions, single_step: bool = False) -> sig.SLSTMResults:
    """One launch over all steps.

    `single_step` (S = 1, no resets, nothing saved) takes the decoding kernel, which sums R h in another order.
    """
    x, R, b, *start, reset, cu_seqlens = operands
    call = _Pass(x, (x.shape[0], x.shape[1], *x.shape[3:]), reset, cu_seqlens, options)
    wide, bias = padded(x, call.DH), None if b is None else b.float()
    view, x_gate_stride = call.gate_views(wide, x.dtype)
    h = call.empty(call.B, call.S, call.NH, call.DH, dtype=x.dtype)
    last = [call.empty(call.N, call.NH, call.DH) for _ in range(4)]
    tails, cells = (
        call.empty(*shape, dtype=dtype) if options.save else call.empty(0, dtype=dtype)
        for shape, dtype in zip(saved_shapes(call.B, call.S, call.NH, call.DH), saved_dtypes(x.dtype))
    )
    with call.on_device():
        kernel = "step" if single_step else call.kernel()
        call.launch(
            "slstm_forward", **call.common(kernel, backward=False), x=view, x_gate_stride=x_gate_stride,
            R=call.weight(R), b=call.state(bias),
            **call.states(("h0", "c0", "n0", "m0"), start), h=call.result(h),
            **call.results(("h_last", "c_last", "n_last", "m_last"), last),
            saved_tails=call.result(tails) if options.save else 0, saved_cells=call.result(cells) if options.save else 0,
        )  # fmt: skip
    h_last, c_last, n_last, m_last = (unpadded(s, call.real_DH) for s in last)
    return sig.SLSTMResults(unpadded(h, call.real_DH), h_last, c_last, n_last, m_last, tails, cells)


def backward(incoming: sig.SLSTMIncoming, saved: sig.SLSTMSaved, options: sig.SLSTMBackwardOptions) -> sig.SLSTMGradients:
    """One launch over all steps, and the products for dR."""
    R, h0, c0, n0, reset, cu_seqlens, tails, cells, h = saved
    assert h is not None
    call = _Pass(h, tuple(h.shape), reset, cu_seqlens, options)
    dh = None if incoming.dh is None else padded(incoming.dh.to(h.dtype), call.DH)
    dx = call.empty(call.B, call.S, 4, call.NH, call.DH, dtype=h.dtype)
    first = [call.empty(call.N, call.NH, call.DH) for _ in range(4)]
    with call.on_device():
        kernel = call.kernel()
        parts = -(-call.N // call.module.SLSTM_TILE_ROWS) if kernel == "resident" else call.N
        db_parts = call.empty(parts, 4, call.NH, call.DH)
        call.launch(
            "slstm_backward", **call.common(kernel, backward=True), R=call.weight(R),
            **call.states(("h0", "c0", "n0"), (h0, c0, n0)),
            saved_tails=call.address(tails, saved_dtypes(h.dtype)[0]), saved_cells=call.address(cells),
            dh=call.view(dh, h.dtype), **call.states(("dh_last", "dc_last", "dn_last"), incoming[1:]),
            dx=call.result(dx), db_parts=call.result(db_parts), **call.results(("dh0", "dc0", "dn0", "dm0"), first),
        )  # fmt: skip
    dx = unpadded(dx, call.real_DH)
    dR, db = _weight_gradient(dx, call.h_before(h, h0)), unpadded(db_parts, call.real_DH).sum(0)
    return sig.SLSTMGradients(dx, dR, db, *(unpadded(s, call.real_DH) for s in first))


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


class _Pass(KernelCall):
    """Sizes, padding and launches of one forward or backward; DH is rounded up to a multiple of 8."""

    def __init__(
        self, like: Tensor, shape: tuple[int, ...], reset: Tensor | None, cu_seqlens: Tensor | None,
        options: sig.SLSTMOptions | sig.SLSTMBackwardOptions,
    ) -> None:  # fmt: skip
        """shape: B, S, NH, DH of tensors with steps."""
        self.dtype = kernel_dtype(f"slstm on {options.backend}: x", like)
        super().__init__(options.backend, like.device)
        self.B, self.S, self.NH, self.real_DH = shape
        self.DH, self.element = multiple_of_8(self.real_DH), like.dtype
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.reset, self.cu_seqlens = reset, cu_seqlens
        flags = self.elements(None if reset is None else reset.unsqueeze(-1), torch.bool)
        borders = self.address(cu_seqlens, torch.int32)
        self.shape = SLSTMShape(self.N, self.S, self.NH, self.DH, borders, flags, options.forget_gate)

    def kernel(self) -> str:
        """Which kernel serves; asked on the device."""
        if _forced_kernel is not None:
            return _forced_kernel
        name: str = self.module.slstm_kernel(self.dtype, self.DH)
        return name

    def common(self, kernel: str, backward: bool) -> dict[str, Any]:
        """The fields of both passes, with the workspace of the grid kernel."""
        self.scratch = None
        if kernel == "grid":
            sizes = (self.N, self.S, self.NH, self.DH)
            size = self.module.slstm_grid_workspace(backward, sizes, self.dtype, _processors)
            self.scratch = self.empty(size, dtype=torch.uint8)  # lives as long as the call
        return {
            "kernel": kernel, "processors": _processors, "shape": self.shape, "dtype": self.dtype,
            "workspace": self.result(self.scratch),
        }  # fmt: skip

    def weight(self, R: Tensor) -> int:
        return self.address(self._kept(padded(R.to(self.element), self.DH, self.DH), R), self.element)

    def state(self, s: Tensor | None) -> int:
        """Of a float32 tensor (..., DH)."""
        return 0 if s is None else self.address(self._kept(padded(s, self.DH), s))

    def states(self, names: tuple[str, ...], tensors: Any) -> dict[str, int]:
        return {name: self.state(s) for name, s in zip(names, tensors)}

    def results(self, names: tuple[str, ...], tensors: list[Tensor]) -> dict[str, int]:
        return {name: self.result(s) for name, s in zip(names, tensors)}

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
