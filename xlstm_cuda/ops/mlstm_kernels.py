"""The chunkwise mLSTM by the kernels of csrc/mlstm, on CUDA tensors or, for tests, on the host executor.

Forward: gate scan, walk H. Backward: dh.h, gate scan with r and delta, walks dQ, dK, dV, gate gradients. Everything is allocated
here and launched on the current stream; nothing synchronises.
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
from .chunkwise.options import Options

MAX_HEAD_DIM = 512
MAX_SEGMENTS, MIN_CHUNKS = 16, 4
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    C0: Tensor | None, n0: Tensor | None, m0: Tensor | None, cu_seqlens: Tensor | None, options: Options, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """h in v's dtype, the final C, n, m, and the dot products s q.n (B, S, NH) that the backward needs."""
    call = _Call(q, v, i, f, cu_seqlens, options, backend)
    DHHV = v.shape[-1]
    Q, K, V = (call.operand(x) for x in (q, k, v))
    initial = None if C0 is None else call.padded_state(C0, n0)
    h, dot = call.like_operand(call.DHHV), empty_dot(i, torch.float32)
    C, n = call.empty(call.N, call.NH, call.DHQK, call.DHHV), call.empty(call.N, call.NH, call.DHQK)
    m = call.empty(call.N, call.NH)
    with call.device():
        records = call.gates(m0, m)
        call.walk("h", Q, K, V, h, records, initial, (C, n), dot=dot)
    C, n = C[:, :, : q.shape[-1], :DHHV].contiguous(), n[:, :, : q.shape[-1]].contiguous()
    return h[..., :DHHV].contiguous(), C, n, m, dot


def backward(
    dh: Tensor | None, dC: Tensor | None, dn: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor,
    C0: Tensor | None, n0: Tensor | None, m0: Tensor | None, cu_seqlens: Tensor | None,
    h: Tensor, dot: Tensor, C: Tensor, n: Tensor, options: Options, exact: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dq, dk, dv, di, df in the dtypes of q, k, v, i, f, and dC0, dn0, dm0. A missing incoming gradient is zero."""
    call = _Call(q, v, i, f, cu_seqlens, options, backend)
    DHQK, DHHV = q.shape[-1], v.shape[-1]
    Q, K, V, dH, H = (call.operand(x) for x in (q, k, v, torch.zeros_like(h) if dh is None else dh, h))
    initial = None if C0 is None else call.padded_state(C0, n0)
    final = call.padded_state(C, n)
    dfinal = None
    if dC is not None or dn is not None:
        dfinal = call.padded_state(torch.zeros_like(C) if dC is None else dC, torch.zeros_like(n) if dn is None else dn)
    dQ, dK, dV = call.like_operand(call.DHQK), call.like_operand(call.DHQK), call.like_operand(call.DHHV)
    di, df = (torch.empty(i.shape, dtype=i.dtype, device=i.device) for _ in range(2))
    dC0, dn0 = call.empty(call.N, call.NH, call.DHQK, call.DHHV), call.empty(call.N, call.NH, call.DHQK)
    line = call.empty(call.B, call.NH, call.S)
    with call.device():
        along = None
        if exact and options.normalize:
            along = call.row_dots(dH, H)
        records = call.gates(m0, call.empty(call.N, call.NH), dot=dot, along=along)
        parts = call.blocks("dq", call.DHHV, call.DHQK)
        q_dq, k_dk = (call.empty(parts, call.B, call.NH, call.S) for _ in range(2))
        call.walk("dq", dH, V, K, dQ, records, initial, None, row_dots=(Q, q_dq))
        call.walk("dk", V, dH, Q, dK, records, dfinal, (dC0, dn0), row_dots=(K, k_dk))
        call.walk("dv", K, Q, dH, dV, records, dfinal, None)
        border = None if dfinal is None else call.state_dots(final, dfinal)
        call.gate_gradients(parts, q_dq, k_dk, border, records, line, di, df)
        dm0 = call.empty(call.N, call.NH).zero_() if initial is None else call.state_dots(initial, (dC0, dn0))
    dQ, dK, dV = dQ[..., :DHQK].contiguous(), dK[..., :DHQK].contiguous(), dV[..., :DHHV].contiguous()
    return dQ, dK, dV, di, df, dC0[:, :, :DHQK, :DHHV].contiguous(), dn0[:, :, :DHQK].contiguous(), dm0


def empty_dot(i: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, S, NH) whose memory is (B, NH, S): the walks write whole lines of steps."""
    B, S, NH = i.shape
    return torch.empty((B, NH, S), dtype=dtype, device=i.device).transpose(1, 2)


def check_head_dims(DHQK: int, DHHV: int, backend: str) -> None:
    for name, dim in (("DHQK", DHQK), ("DHHV", DHHV)):
        if not 1 <= dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"mlstm on {backend}: {name}: got {dim}, expected 1 to {MAX_HEAD_DIM}"
                " (multiples of 8 are read in place, others are padded; tiles end at 64, 128, 256 and 512)"
            )


_forced_segments: int | None = None


@contextlib.contextmanager
def forced_segments(count: int) -> Iterator[None]:
    """For tests: cuts every sequence into ``count`` segments, whatever the device is. The results have the same bits."""
    global _forced_segments
    before, _forced_segments = _forced_segments, count
    try:
        yield
    finally:
        _forced_segments = before


class _Call:
    """Sizes, padding and launches of one forward or backward; DHQK and DHHV are rounded up to multiples of 8."""

    def __init__(self, q: Tensor, v: Tensor, i: Tensor, f: Tensor, cu_seqlens: Tensor | None, options: Options, backend: str):
        check_head_dims(q.shape[-1], v.shape[-1], backend)
        if q.dtype not in DTYPES:
            raise TypeError(f"mlstm on {backend}: q: got {q.dtype}, expected {', '.join(map(str, DTYPES))}")
        self.B, self.S, self.NH = q.shape[:3]
        self.DHQK, self.DHHV = (-(-d // 8) * 8 for d in (q.shape[-1], v.shape[-1]))
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.like, self.dtype, self.options = q, DTYPES[q.dtype], options
        self.i, self.f = i, f
        self.cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.on_gpu = backend == "cuda"
        self.module: ModuleType = native._C if self.on_gpu else simt.module()
        self.L = self.module.mlstm_chunk_length(self.dtype, self.DHQK, self.DHHV)
        self.slots = self.N * -(-self.S // self.L) if cu_seqlens is None else self.S // self.L + self.N

    def device(self) -> contextlib.AbstractContextManager:
        return torch.cuda.device(self.like.device) if self.on_gpu else contextlib.nullcontext()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.like.device)

    def like_operand(self, D: int) -> Tensor:
        return self.empty(self.B, self.S, self.NH, D, dtype=self.like.dtype)

    def operand(self, x: Tensor) -> Tensor:
        """x as the walks read it: head dim a multiple of 8, unit last stride, rows at multiples of 16 bytes; copied if not."""
        if x.shape[-1] % 8:
            return pad(x, (0, -x.shape[-1] % 8)).contiguous()  # of what looks like images, pad keeps channels last
        aligned = x.data_ptr() % 16 == 0 and all(stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1])
        return x if x.stride(-1) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)

    def padded_state(self, C: Tensor, n: Tensor | None) -> tuple[Tensor, Tensor]:
        assert n is not None
        rows, columns = self.DHQK - C.shape[-2], self.DHHV - C.shape[-1]
        if rows or columns:
            C, n = pad(C, (0, columns, 0, rows)), pad(n, (0, rows))
        return C.contiguous(), n.contiguous()

    def gates(self, m0: Tensor | None, m_last: Tensor, dot: Tensor | None = None, along: Tensor | None = None) -> Tensor:
        records = self.empty(self.NH, self.slots, 9 * self.L + 4)
        options, m0 = self.options, None if m0 is None else m0.contiguous()
        totals, before = self.empty(self.NH, self.slots, 2, dtype=torch.float64), self.empty(self.NH, self.slots)
        self.module.mlstm_gates(
            **self._sequences(), **self._gate_operands(), L=self.L,
            normalize=options.normalize, scale=options.scale, eps=options.eps,
            m0=_address(m0), totals=_address(totals), m_before=_address(before), m_last=_address(m_last),
            dot=_address(dot), along=_address(along), records=_address(records), stream=self._stream(),
        )  # fmt: skip
        return records

    def walk(
        self, use: str, A: Tensor, B: Tensor, X: Tensor, O: Tensor, records: Tensor,
        start: tuple[Tensor, Tensor] | None, end: tuple[Tensor, Tensor] | None,
        dot: Tensor | None = None, row_dots: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:  # fmt: skip
        """Walk `use` of csrc/mlstm/walk.cuh; start and end are (C, n) or (dC, dn), row_dots the other factor and the result."""
        with_, out = row_dots
        C_start, n_start = start or (None, None)
        C_end, n_end = end or (None, None)
        segments = self._segments(use, A.shape[-1], X.shape[-1])
        borders = (
            self.empty(segments - 1, self.N, self.NH, self.DHQK, self.DHHV),
            self.empty(segments - 1, self.N, self.NH, self.DHQK),
        )
        self.module.mlstm_walk(
            **self._sequences(), use=use, dtype=self.dtype, c=A.shape[-1], o=X.shape[-1],
            A=A.data_ptr(), B=B.data_ptr(), X=X.data_ptr(), O=O.data_ptr(),
            A_strides=A.stride()[:3], B_strides=B.stride()[:3], X_strides=X.stride()[:3], O_strides=O.stride()[:3],
            records=records.data_ptr(), normalize=self.options.normalize, scale=self.options.scale, eps=self.options.eps,
            state_start=_address(C_start), vector_start=_address(n_start), state_end=_address(C_end), vector_end=_address(n_end),
            segments=segments, segment_states=borders[0].data_ptr(), segment_vectors=borders[1].data_ptr(),
            dot=_address(dot), row_dot_with=_address(with_), row_dot_strides=(0, 0, 0) if with_ is None else with_.stride()[:3],
            row_dots=_address(out), stream=self._stream(),
        )  # fmt: skip

    def blocks(self, use: str, c: int, o: int) -> int:
        """Of one sequence and head, in a walk over c columns with o columns of results."""
        return -(-o // self.module.mlstm_block_columns(use, self.dtype, self.L, c, o))

    def _segments(self, use: str, c: int, o: int) -> int:
        """How many pieces of a sequence run side by side: none on a device that the blocks of one piece fill by half already.

        Two blocks for every SM are wanted; a piece has at least MIN_CHUNKS chunks, and the pass that makes its first state costs
        about a third of a walk, so that more than MAX_SEGMENTS pieces gain nothing.
        """
        if _forced_segments is not None:
            return _forced_segments
        if not self.on_gpu:
            return 1
        blocks = max(1, self.N * self.NH * self.blocks(use, c, o))
        wanted = 2 * torch.cuda.get_device_properties(self.like.device).multi_processor_count // blocks
        steps = self.S // (1 if self.cu_seqlens is None else max(1, self.N))
        return max(1, min(wanted, MAX_SEGMENTS, steps // (self.L * MIN_CHUNKS))) if wanted >= 4 else 1

    def row_dots(self, x: Tensor, y: Tensor) -> Tensor:
        """x.y of every step, (B, NH, S) float32."""
        out = self.empty(self.B, self.NH, self.S)
        self.module.mlstm_row_dots(
            B=self.B, S=self.S, NH=self.NH, D=x.shape[-1], dtype=self.dtype, x=x.data_ptr(), y=y.data_ptr(),
            x_strides=x.stride()[:3], y_strides=y.stride()[:3], out=out.data_ptr(), stream=self._stream(),
        )  # fmt: skip
        return out

    def state_dots(self, state: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        """<C, D> + <n, d>, (N, NH)."""
        out = self.empty(self.N, self.NH)
        self.module.mlstm_state_dots(
            rows=self.N * self.NH, C_size=self.DHQK * self.DHHV, n_size=self.DHQK,
            C=state[0].data_ptr(), D=other[0].data_ptr(), n=state[1].data_ptr(), d=other[1].data_ptr(),
            out=out.data_ptr(), stream=self._stream(),
        )  # fmt: skip
        return out

    def gate_gradients(
        self, parts: int, q_dq: Tensor, k_dk: Tensor, border: Tensor | None, records: Tensor, line: Tensor, di: Tensor, df: Tensor
    ) -> None:
        self.module.mlstm_gate_gradients(
            **self._sequences(), **self._gate_operands(), L=self.L, parts=parts,
            q_dq=q_dq.data_ptr(), k_dk=k_dk.data_ptr(), border=_address(border), records=records.data_ptr(),
            dlog_f=line.data_ptr(), di=di.data_ptr(), df=df.data_ptr(), stream=self._stream(),
        )  # fmt: skip

    def _sequences(self) -> dict[str, Any]:
        return {"shape": (self.B, self.S, self.N, self.NH), "cu_seqlens": _address(self.cu_seqlens)}

    def _gate_operands(self) -> dict[str, Any]:
        i, f = self.i, self.f
        return {
            "gate_dtype": DTYPES[i.dtype], "igate": self.options.igate, "i": i.data_ptr(), "f": f.data_ptr(),
            "i_strides": i.stride(), "f_strides": f.stride(),
        }  # fmt: skip

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.like.device).cuda_stream if self.on_gpu else 0


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
