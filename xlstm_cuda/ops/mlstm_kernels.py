"""The chunkwise mLSTM by the kernels of csrc/mlstm, on CUDA tensors or, for tests, on the host executor.

Forward: gate scan, walk H. Backward: dh.h, gate scan with r and delta, walks dQ, dK, dV, gate gradients. Everything is allocated
here and launched on the current stream; nothing synchronises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import ABSENT, KernelCall, kernel_dtype, multiple_of_8, padded, same_dtype, unpadded
from .signatures import MLSTMGradients, MLSTMIncoming, MLSTMOperands, MLSTMOptions, MLSTMResults, MLSTMSaved

MAX_HEAD_DIM = 512
MAX_SEGMENTS, MIN_CHUNKS = 16, 4

State = tuple[Tensor, Tensor]  # C and n, or their gradients


def forward(operands: MLSTMOperands, options: MLSTMOptions) -> MLSTMResults:
    """One gate scan and one walk."""
    q, k, v, i, _, C0, n0, m0, _ = operands
    call = _Pass(operands, options)
    h, dot = call.like_operand(call.DHHV), empty_dot(i, torch.float32)
    C, n, m = call.empty_state(), call.empty(call.N, call.NH, call.DHQK), call.empty(call.N, call.NH)
    with call.on_device():
        records = call.gates(m0, m)
        call.walk("h", call.operand(q), call.operand(k), call.operand(v), h, records, call.state(C0, n0), (C, n), dot=dot)
    DHQK, DHHV = q.shape[-1], v.shape[-1]
    return MLSTMResults(unpadded(h, DHHV), unpadded(C, DHQK, DHHV), unpadded(n, DHQK), m, dot)


def backward(incoming: MLSTMIncoming, operands: MLSTMOperands, saved: MLSTMSaved, options: MLSTMOptions) -> MLSTMGradients:
    """Two row dots, one gate scan, three walks, and the gate gradients."""
    q, k, v, i, f, C0, n0, m0, _ = operands
    call = _Pass(operands, options)
    dh = torch.zeros_like(saved.h) if incoming.dh is None else incoming.dh
    Q, K, V, dH, H = (call.operand(x) for x in (q, k, v, dh, saved.h))
    initial, final = call.state(C0, n0), call.state(saved.C, saved.n)
    dfinal = None
    if incoming.dC is not None or incoming.dn is not None:
        assert saved.C is not None and saved.n is not None  # the states of which these are the gradients
        dC = torch.zeros_like(saved.C) if incoming.dC is None else incoming.dC
        dn = torch.zeros_like(saved.n) if incoming.dn is None else incoming.dn
        dfinal = call.state(dC, dn)
    dQ, dK, dV = call.like_operand(call.DHQK), call.like_operand(call.DHQK), call.like_operand(call.DHHV)
    di, df = (torch.empty(i.shape, dtype=call.i.dtype, device=i.device) for _ in range(2))
    dinitial = call.empty_state(), call.empty(call.N, call.NH, call.DHQK)
    with call.on_device():
        along = call.row_dots(dH, H) if options.exact and options.normalize else None
        records = call.gates(m0, call.empty(call.N, call.NH), dot=saved.dot, along=along)
        parts = call.blocks("dq", call.DHHV, call.DHQK)
        q_dq, k_dk = (call.empty(parts, call.B, call.NH, call.S) for _ in range(2))
        call.walk("dq", dH, V, K, dQ, records, initial, None, row_dots=(Q, q_dq))
        call.walk("dk", V, dH, Q, dK, records, dfinal, dinitial, row_dots=(K, k_dk))
        call.walk("dv", K, Q, dH, dV, records, dfinal, None)
        border = None if dfinal is None or final is None else call.state_dots(final, dfinal)
        call.gate_gradients(q_dq, k_dk, border, records, di, df)
        dm0 = call.empty(call.N, call.NH).zero_() if initial is None else call.state_dots(initial, dinitial)
    DHQK, DHHV = q.shape[-1], v.shape[-1]
    dq, dk, dv = unpadded(dQ, DHQK), unpadded(dK, DHQK), unpadded(dV, DHHV)
    di, df = di.to(i.dtype), df.to(f.dtype)
    return MLSTMGradients(dq, dk, dv, di, df, unpadded(dinitial[0], DHQK, DHHV), unpadded(dinitial[1], DHQK), dm0)


def empty_dot(i: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, S, NH) whose memory is (B, NH, S): the walks write whole lines of steps."""
    B, S, NH = i.shape
    return torch.empty((B, NH, S), dtype=dtype, device=i.device).transpose(1, 2)


def check_head_dims(DHQK: int, DHHV: int, backend: str) -> None:
    """ValueError for a head dim that no kernel holds."""
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


class _Sequences(NamedTuple):
    """csrc/mlstm/params.h: Sequences."""

    B: int
    S: int
    N: int
    NH: int
    cu_seqlens: int


class _Pass(KernelCall):
    """Sizes and launches of one forward or backward; DHQK and DHHV are rounded up to multiples of 8."""

    def __init__(self, operands: MLSTMOperands, options: MLSTMOptions) -> None:
        q, v, cu_seqlens = operands.q, operands.v, operands.cu_seqlens
        check_head_dims(q.shape[-1], v.shape[-1], options.backend)
        self.dtype = kernel_dtype(f"mlstm on {options.backend}: q", q)
        super().__init__(options.backend, q.device)
        self.B, self.S, self.NH = q.shape[:3]
        self.DHQK, self.DHHV = multiple_of_8(q.shape[-1]), multiple_of_8(v.shape[-1])
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.element, self.options = q.dtype, options
        self.i, self.f = same_dtype(operands.i, operands.f)
        self.packed = cu_seqlens is not None
        self.sequences = _Sequences(self.B, self.S, self.N, self.NH, self.address(cu_seqlens, torch.int32))
        self.L: int = self.module.mlstm_chunk_length(self.dtype, self.DHQK, self.DHHV)
        self.slots = self.S // self.L + self.N if self.packed else self.N * -(-self.S // self.L)

    def like_operand(self, D: int) -> Tensor:
        return self.empty(self.B, self.S, self.NH, D, dtype=self.element)

    def empty_state(self) -> Tensor:
        return self.empty(self.N, self.NH, self.DHQK, self.DHHV)

    def operand(self, x: Tensor) -> Tensor:
        """x as the walks read it, head dim a multiple of 8; copied if it is not."""
        return self.rows(padded(x, multiple_of_8(x.shape[-1])), self.element)

    def state(self, C: Tensor | None, n: Tensor | None) -> State | None:
        if C is None or n is None:
            return None
        return padded(C, self.DHQK, self.DHHV), padded(n, self.DHQK)

    def gates(self, m0: Tensor | None, m_last: Tensor, dot: Tensor | None = None, along: Tensor | None = None) -> Tensor:
        """M4-M6: the records of all chunks, with those of the backward where ``dot`` is given."""
        records = self.empty(self.NH, self.slots, 9 * self.L + 4)
        totals, before = self.empty(self.NH, self.slots, 2, dtype=torch.float64), self.empty(self.NH, self.slots)
        self.launch(
            "mlstm_gates", **self._gates(), m0=self.address(m0), totals=self.result(totals), m_before=self.result(before),
            m_last=self.result(m_last), dot=self.address(None if dot is None else dot.transpose(1, 2)),
            along=self.address(along), records=self.result(records),
        )  # fmt: skip
        return records

    def walk(
        self, use: str, A: Tensor, B: Tensor, X: Tensor, O: Tensor, records: Tensor, start: State | None, end: State | None,
        *, dot: Tensor | None = None, row_dots: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Walk `use` of csrc/mlstm/walk; start and end are (C, n) or (dC, dn), row_dots the other factor and the result."""
        C_start, n_start = start or (None, None)
        C_end, n_end = end or (None, None)
        with_, out = row_dots or (None, None)
        segments = self._segments(use, A.shape[-1], X.shape[-1])
        states = self.empty(segments - 1, self.N, self.NH, self.DHQK, self.DHHV)
        vectors = self.empty(segments - 1, self.N, self.NH, self.DHQK)
        self.launch(
            "mlstm_walk", use=use, options=self.options, sequences=self.sequences, dtype=self.dtype,
            contracted=A.shape[-1], outputs=X.shape[-1],
            A=self.view(A, self.element), B=self.view(B, self.element), X=self.view(X, self.element), O=self.result_view(O),
            records=self.address(records), state_start=self.address(C_start), vector_start=self.address(n_start),
            state_end=self.result(C_end), vector_end=self.result(n_end),
            segments=segments, segment_states=self.result(states), segment_vectors=self.result(vectors),
            dot=self.result(None if dot is None else dot.transpose(1, 2)),
            row_dot_with=ABSENT if with_ is None else self.view(with_, self.element), row_dots=self.result(out),
        )  # fmt: skip

    def blocks(self, use: str, c: int, o: int) -> int:
        """Of one sequence and head, in a walk over c columns with o columns of results."""
        columns: int = self.module.mlstm_block_columns(use, self.dtype, self.L, c, o)
        return -(-o // columns)

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
        wanted = 2 * torch.cuda.get_device_properties(self.device).multi_processor_count // blocks
        steps = self.S // (max(1, self.N) if self.packed else 1)
        return max(1, min(wanted, MAX_SEGMENTS, steps // (self.L * MIN_CHUNKS))) if wanted >= 4 else 1

    def row_dots(self, x: Tensor, y: Tensor) -> Tensor:
        """x.y of every step, (B, NH, S) float32."""
        out = self.empty(self.B, self.NH, self.S)
        self.launch(
            "mlstm_row_dots", B=self.B, S=self.S, NH=self.NH, D=x.shape[-1], dtype=self.dtype,
            x=self.view(x, self.element), y=self.view(y, self.element), out=self.result(out),
        )  # fmt: skip
        return out

    def state_dots(self, state: State, other: State) -> Tensor:
        """<C, D> + <n, d>, (N, NH)."""
        out = self.empty(self.N, self.NH)
        self.launch(
            "mlstm_state_dots", rows=self.N * self.NH, C_size=self.DHQK * self.DHHV, n_size=self.DHQK,
            C=self.address(state[0]), D=self.address(other[0]), n=self.address(state[1]), d=self.address(other[1]),
            out=self.result(out),
        )  # fmt: skip
        return out

    def gate_gradients(self, q_dq: Tensor, k_dk: Tensor, border: Tensor | None, records: Tensor, di: Tensor, df: Tensor) -> None:
        """M7."""
        line = self.empty(self.B, self.NH, self.S)
        self.launch(
            "mlstm_gate_gradients", **self._gates(), parts=q_dq.shape[0], q_dq=self.address(q_dq), k_dk=self.address(k_dk),
            border=self.address(border), records=self.address(records),
            dlog_f=self.result(line), di=self.result(di), df=self.result(df),
        )  # fmt: skip

    def _gates(self) -> dict[str, object]:
        i, f = self.i, self.f
        return {
            "options": self.options, "sequences": self.sequences, "L": self.L, "gate_dtype": kernel_dtype("mlstm: i", i),
            "i": self.elements(i, i.dtype), "f": self.elements(f, i.dtype),
        }  # fmt: skip
