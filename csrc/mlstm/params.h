// params.h - what the mLSTM launchers are given: views and pointers with their shapes, sizes, switches. After each struct stand
// the names that the caller in Python has for its fields (python/reader.h).
#pragma once
#include <cstdint>

#include "common/element_type.h"
#include "common/view.h"

namespace xlstm {

enum class InputGate { Exponential, Sigmoid };

}  // namespace xlstm

namespace xlstm::mlstm {

// What every launch of a call shares (M1-M3).
struct Options {
  InputGate input_gate;
  bool normalize;
  float scale, eps;
};
template <class R>
void read(R& r, Options& o) {
  r("igate", o.input_gate)("normalize", o.normalize)("scale", o.scale)("eps", o.eps);
}

struct StepParams : Options {
  int64_t B, NH;
  int DHQK, DHHV;  // multiples of 8 up to 512
  ElementType element, gate_element;
  View<> q, k;                   // (B, NH, DHQK) of element
  View<> v;                      // (B, NH, DHHV) of element
  View<> i, f;                   // (B, NH) of gate_element
  const float *C, *n, *m;        // (B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH), contiguous
  void* h;                       // (B, NH, DHHV) of element, contiguous
  float *C_new, *n_new, *m_new;  // contiguous; C_new may be C, the others must not overlap their namesakes
};
template <class R>
void read(R& r, StepParams& p) {
  r("options", static_cast<Options&>(p));
  r("B", p.B)("NH", p.NH)("DHQK", p.DHQK)("DHHV", p.DHHV);
  r("dtype", p.element)("gate_dtype", p.gate_element);
  r("q", p.q)("k", p.k)("v", p.v)("i", p.i)("f", p.f);
  r("C", p.C)("n", p.n)("m", p.m)("h", p.h);
  r("C_new", p.C_new)("n_new", p.n_new)("m_new", p.m_new);
}

// Enqueues the step on the stream. Throws std::invalid_argument for a head dim that is not accepted, std::runtime_error from
// CUDA.
void step(const StepParams& params, Stream stream);

// ---- sequences, chunk by chunk (README.md, "Chunkwise form")

// N sequences of a (B, S, NH, ...) tensor: its B rows, or with cu_seqlens (N+1 borders, on the device) pieces of the one row.
struct Sequences {
  int64_t B, S, N, NH;
  const int32_t* cu_seqlens;  // null: N = B sequences of S steps
};
template <class R>
void read(R& r, Sequences& s) {
  r("B", s.B)("S", s.S)("N", s.N)("NH", s.NH)("cu_seqlens", s.cu_seqlens);
}

// Chunk k of sequence n owns slot first_slot(n) + k of `slots` (sequences.cuh); workspaces are (NH, slots, ...).
int64_t chunk_slots(const Sequences& sequences, int L);

// M4-M6: the stabilisers and one record (gates/records.h) per chunk and head. With `dot` these are the backward's, with r and
// delta.
struct GateScanParams : Options {
  Sequences sequences;
  int L;  // 16, 32 or 64
  ElementType gate_element;
  View<> i, f;         // (B, S, NH) of gate_element
  const float* m0;     // (N, NH), or null for 0
  double* totals;      // workspace (NH, slots, 2): what M5 needs of every chunk
  float* m_before;     // workspace (NH, slots): m_{k-1}
  float* m_last;       // (N, NH)
  const float* dot;    // backward: (B, NH, S), s q.n of every step; null in the forward
  const float* along;  // backward: (B, NH, S), dh.h of every step; null when delta is 0
  float* records;      // (NH, slots, Record<L>::kFloats)
};
template <class R>
void read(R& r, GateScanParams& p) {
  r("options", static_cast<Options&>(p));
  r("sequences", p.sequences)("L", p.L)("gate_dtype", p.gate_element);
  r("i", p.i)("f", p.f)("m0", p.m0);
  r("totals", p.totals)("m_before", p.m_before)("m_last", p.m_last);
  r("dot", p.dot)("along", p.along)("records", p.records);
}
void gate_scan(const GateScanParams& params, Stream stream);

enum class WalkUse { H, DQ, DK, DV };

// One walk (walk/kernel.cuh): A and B, whose columns are contracted; X and O, whose columns are outputs.
//   use   A    B    X   O    contracted   outputs
//   H     q    k    v   h    DHQK         DHHV
//   DQ    dh   v    k   dq   DHHV         DHQK
//   DK    v    dh   q   dk   DHHV         DHQK
//   DV    k    q    dh  dv   DHQK         DHHV
struct WalkParams : Options {  // the options are H's
  WalkUse use;
  Sequences sequences;
  ElementType element;
  int contracted, outputs;  // columns, multiples of 8 up to 512
  View<> A, B, X, O;        // rows at multiples of 16 bytes
  const float* records;
  const float *state_start, *vector_start;  // (N, NH, DHQK, DHHV): C or dC; (N, NH, DHQK): n (H, DQ) or dn (DK). Null is 0.
  float *state_end, *vector_end;            // the same after the walk, or null
  int segments;                             // of every sequence; more than 1 adds a pass that makes their first states
  float *segment_states, *segment_vectors;  // workspaces (segments - 1, N, NH, DHQK, DHHV) and (segments - 1, N, NH, DHQK)
  float* dot;                               // H: (B, NH, S), s q.n
  View<> row_dot_with;                      // DQ: q, DK: k, (B, S, NH, outputs)
  float* row_dots;                          // DQ, DK: (parts, B, NH, S), q.dq or k.dk, one part per block of columns of O
};
template <class R>
void read(R& r, WalkParams& p) {
  r("options", static_cast<Options&>(p));
  r("use", p.use)("sequences", p.sequences)("dtype", p.element)("contracted", p.contracted)("outputs", p.outputs);
  r("A", p.A)("B", p.B)("X", p.X)("O", p.O)("records", p.records);
  r("state_start", p.state_start)("vector_start", p.vector_start);
  r("state_end", p.state_end)("vector_end", p.vector_end);
  r("segments", p.segments)("segment_states", p.segment_states)("segment_vectors", p.segment_vectors);
  r("dot", p.dot)("row_dot_with", p.row_dot_with)("row_dots", p.row_dots);
}
void walk(const WalkParams& params, Stream stream);

// Steps of a chunk, the same for all walks of a call.
int chunk_length(ElementType element, int DHQK, int DHHV);
// Columns of O that a block of this walk takes on the current device.
int block_columns(WalkUse use, ElementType element, int L, int contracted, int outputs);

// out[b, h, t] = <x[b, t, h], y[b, t, h]> in float32
struct RowDotParams {
  int64_t B, S, NH;
  int D;
  ElementType element;
  View<> x, y;  // (B, S, NH, D)
  float* out;   // (B, NH, S)
};
template <class R>
void read(R& r, RowDotParams& p) {
  r("B", p.B)("S", p.S)("NH", p.NH)("D", p.D)("dtype", p.element);
  r("x", p.x)("y", p.y)("out", p.out);
}
void row_dots(const RowDotParams& params, Stream stream);

// out[row] = <C[row], D[row]> + <n[row], d[row]>; null pointers count as zero
struct StateDotParams {
  int64_t rows, C_size, n_size;
  const float *C, *D, *n, *d;
  float* out;
};
template <class R>
void read(R& r, StateDotParams& p) {
  r("rows", p.rows)("C_size", p.C_size)("n_size", p.n_size);
  r("C", p.C)("D", p.D)("n", p.n)("d", p.d)("out", p.out);
}
void state_dots(const StateDotParams& params, Stream stream);

// M7: di and df from the row dots of the walks.
struct GateGradientParams : Options {
  Sequences sequences;
  int L, parts;
  ElementType gate_element;
  const float *q_dq, *k_dk;  // (parts, B, NH, S)
  const float* border;       // (N, NH): <C, dC> + <n, dn> of the final state
  const float* records;
  View<> i, f;
  float* dlog_f;  // workspace (B, NH, S)
  void *di, *df;  // (B, S, NH) of gate_element, contiguous
};
template <class R>
void read(R& r, GateGradientParams& p) {
  r("options", static_cast<Options&>(p));
  r("sequences", p.sequences)("L", p.L)("parts", p.parts)("gate_dtype", p.gate_element);
  r("q_dq", p.q_dq)("k_dk", p.k_dk)("border", p.border)("records", p.records);
  r("i", p.i)("f", p.f)("dlog_f", p.dlog_f)("di", p.di)("df", p.df);
}
void gate_gradients(const GateGradientParams& params, Stream stream);

}  // namespace xlstm::mlstm
