// params.h - what the mLSTM launchers are given: pointers with their shapes, strides in elements, sizes and switches.
#pragma once
#include <cstdint>

#include "element_type.h"

namespace xlstm {

enum class InputGate { Exponential, Sigmoid };

}  // namespace xlstm

namespace xlstm::mlstm {

struct HeadStrides {  // of a (B, NH, ...) tensor whose last axis has unit stride
  int64_t batch, head;
};

struct StepParams {
  int64_t B, NH;
  int DHQK, DHHV;  // multiples of 8 up to 512
  ElementType element, gate_element;
  InputGate input_gate;
  bool normalize;
  float scale, eps;
  const void *q, *k;             // (B, NH, DHQK) of element
  const void* v;                 // (B, NH, DHHV) of element
  const void *i, *f;             // (B, NH) of gate_element
  const float *C, *n, *m;        // (B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH), contiguous
  void* h;                       // (B, NH, DHHV) of element, contiguous
  float *C_new, *n_new, *m_new;  // contiguous; C_new may be C, the others must not overlap their namesakes
  HeadStrides q_strides, k_strides, v_strides, i_strides, f_strides;
};

// Enqueues the step on the stream. Throws std::invalid_argument for a head dim that is not accepted, std::runtime_error from
// CUDA.
void step(const StepParams& params, void* stream);

// ---- sequences, chunk by chunk (README.md, "Chunkwise form")

struct StepStrides {  // of a (B, S, NH, ...) tensor whose last axis has unit stride
  int64_t batch, step, head;
};

// N sequences of a (B, S, NH, ...) tensor: its B rows, or with cu_seqlens (N+1 borders, on the device) pieces of the one row.
struct Sequences {
  int64_t B, S, N, NH;
  const int32_t* cu_seqlens;  // null: N = B sequences of S steps
};

// Chunk k of sequence n owns slot first_slot(n) + k of `slots` (sequences.cuh); workspaces are (NH, slots, ...).
int64_t chunk_slots(const Sequences& sequences, int L);

// M4-M6: the stabilisers and one record (records.h) per chunk and head. With `dot` these are the backward's, with r and delta.
struct GateScanParams {
  Sequences sequences;
  int L;  // 16, 32 or 64
  ElementType gate_element;
  InputGate input_gate;
  bool normalize;
  float scale, eps;
  const void *i, *f;  // (B, S, NH) of gate_element
  StepStrides i_strides, f_strides;
  const float* m0;     // (N, NH), or null for 0
  double* totals;      // workspace (NH, slots, 2): what M5 needs of every chunk
  float* m_before;     // workspace (NH, slots): m_{k-1}
  float* m_last;       // (N, NH)
  const float* dot;    // backward: (B, NH, S), s q.n of every step; null in the forward
  const float* along;  // backward: (B, NH, S), dh.h of every step; null when delta is 0
  float* records;      // (NH, slots, Record<L>::kFloats)
};
void gate_scan(const GateScanParams& params, void* stream);

enum class WalkUse { H, DQ, DK, DV };

// One walk (walk.cuh): operands A, B of c columns, X and O of o columns.
//   use   A    B    X   O    c     o
//   H     q    k    v   h    DHQK  DHHV
//   DQ    dh   v    k   dq   DHHV  DHQK
//   DK    v    dh   q   dk   DHHV  DHQK
//   DV    k    q    dh  dv   DHQK  DHHV
struct WalkParams {
  Sequences sequences;
  ElementType element;
  int c, o;  // multiples of 8 up to 512
  const void *A, *B, *X;
  void* O;
  StepStrides A_strides, B_strides, X_strides, O_strides;  // multiples of 16 bytes
  const float* records;
  bool normalize;                           // H only
  float scale, eps;                         // H only
  const float *state_start, *vector_start;  // (N, NH, DHQK, DHHV): C or dC; (N, NH, DHQK): n (H, DQ) or dn (DK). Null is 0.
  float *state_end, *vector_end;            // the same after the walk, or null
  int segments;                             // of every sequence; more than 1 adds a pass that makes their first states
  float *segment_states, *segment_vectors;  // workspaces (segments - 1, N, NH, DHQK, DHHV) and (segments - 1, N, NH, DHQK)
  float* dot;                               // H: (B, NH, S), s q.n
  const void* row_dot_with;                 // DQ: q, DK: k, (B, S, NH, o)
  StepStrides row_dot_strides;
  float* row_dots;  // DQ, DK: (parts, B, NH, S), q.dq or k.dk in float32, one part per block of columns of O
};
void walk(WalkUse use, const WalkParams& params, void* stream);

// Steps of a chunk, the same for all walks of a call.
int chunk_length(ElementType element, int DHQK, int DHHV);
// Columns of O that a block of this walk takes on the current device.
int block_columns(WalkUse use, ElementType element, int L, int c, int o);

// out[b, h, t] = <x[b, t, h], y[b, t, h]> in float32
struct RowDotParams {
  int64_t B, S, NH;
  int D;
  ElementType element;
  const void *x, *y;  // (B, S, NH, D)
  StepStrides x_strides, y_strides;
  float* out;  // (B, NH, S)
};
void row_dots(const RowDotParams& params, void* stream);

// out[row] = <C[row], D[row]> + <n[row], d[row]>; null pointers count as zero
struct StateDotParams {
  int64_t rows, C_size, n_size;
  const float *C, *D, *n, *d;
  float* out;
};
void state_dots(const StateDotParams& params, void* stream);

// M7: di and df from the row dots of the walks.
struct GateGradientParams {
  Sequences sequences;
  int L, parts;
  ElementType gate_element;
  InputGate input_gate;
  const float *q_dq, *k_dk;  // (parts, B, NH, S)
  const float* border;       // (N, NH): <C, dC> + <n, dn> of the final state
  const float* records;
  const void *i, *f;
  StepStrides i_strides, f_strides;
  float* dlog_f;  // workspace (B, NH, S)
  void *di, *df;  // (B, S, NH) of gate_element, contiguous
};
void gate_gradients(const GateGradientParams& params, void* stream);

}  // namespace xlstm::mlstm
