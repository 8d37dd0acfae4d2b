// params.h - the operands of one sLSTM launch: every pointer with its shape, every view with its strides (in elements).
// B rows, S steps, NH heads, DH units of a head; gates in the order i, f, z, o.  With cu_seqlens the tensors of shape
// (B, S, ...) are (1, S, ...), row r is the steps cu_seqlens[r] .. cu_seqlens[r + 1], and B counts those rows.
// P is DH rounded up as the kernels like it.
#pragma once
#include <cstdint>

namespace xlstm::slstm {

enum class ForgetGate : int { kSigmoid = 0, kExp = 1 };

struct Shape {
  int64_t B, S, NH, DH;
  const int32_t* cu_seqlens;  // (B + 1) or null
  const uint8_t* reset;       // (B, S) or null; 1 starts the row afresh before that step
  int64_t reset_stride_b, reset_stride_s;
  ForgetGate forget_gate;
};

template <typename Element, typename State = float>
struct ForwardParams {
  Shape shape;
  const Element* x;  // (B, S, 4, NH, DH), unit last stride
  int64_t x_stride_b, x_stride_s, x_stride_g, x_stride_n;
  const State* R;                            // (4, NH, DH, DH) [gate, head, out, in]
  const State* b;                            // (4, NH, DH) or null
  const State *h0, *c0, *n0, *m0;            // (B, NH, DH), all null for a fresh start
  Element* h;                                // (B, S, NH, DH)
  State *h_last, *c_last, *n_last, *m_last;  // (B, NH, DH)
  State* saved_gates;                        // (B, S, NH, 4, P): d, sf, u, w of cell.cuh; null when nothing is saved
  State* saved_cells;                        // (B, S, NH, 2, P): c, n after the step; null when nothing is saved
  bool single_step;                          // S = 1 in a decoding loop: no work that only many steps repay
};

template <typename Element, typename State = float>
struct BackwardParams {
  Shape shape;
  const State* R;             // (4, NH, DH, DH)
  const State *h0, *c0, *n0;  // (B, NH, DH), all null for a fresh start
  const State* saved_gates;   // (B, S, NH, 4, P)
  const State* saved_cells;   // (B, S, NH, 2, P)
  const Element* dh;          // (B, S, NH, DH), unit last stride, or null for zero
  int64_t dh_stride_b, dh_stride_s, dh_stride_n;
  const State *dh_last, *dc_last, *dn_last;  // (B, NH, DH), each null for zero
  Element* dx;                               // (B, S, 4, NH, DH)
  State* h_prev;                             // (B, S, NH, DH): the h that entered each step, for dR = dx^T h_prev
  State* db_rows;                            // (B, 4, NH, DH): dx summed over each row's steps
  State *dh0, *dc0, *dn0, *dm0;              // (B, NH, DH)
};

}  // namespace xlstm::slstm
