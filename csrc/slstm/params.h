// params.h - the operands of one sLSTM launch: every pointer with its shape, every view with its strides (in elements).
// B rows, S steps, NH heads, DH units of a head; gates in the order i, f, z, o.  With cu_seqlens the tensors of shape
// (B, S, ...) are (1, S, ...), row r is the steps cu_seqlens[r] .. cu_seqlens[r + 1], and B counts those rows.
// P is DH rounded up as the kernels like it.
#pragma once
#include <cstdint>

#include "common/view.h"

namespace xlstm::slstm {

enum class ForgetGate : int { kSigmoid = 0, kExp = 1 };

struct Shape {
  int64_t B, S, NH, DH;
  const int32_t* cu_seqlens;  // (B + 1) or null
  View<const uint8_t> reset;  // (B, S) or null; 1 starts the row afresh before that step
  ForgetGate forget_gate;
};
template <class R>
void read(R& r, Shape& s) {
  r("B", s.B)("S", s.S)("NH", s.NH)("DH", s.DH);
  r("cu_seqlens", s.cu_seqlens)("reset", s.reset)("forget_gate", s.forget_gate);
}

template <typename Element, typename State = float>
struct ForwardParams {
  Shape shape;
  View<const Element> x;                     // (B, S, NH, DH) of the first gate
  int64_t x_gate_stride;                     // from gate to gate
  const State* R;                            // (4, NH, DH, DH) [gate, head, out, in]
  const State* b;                            // (4, NH, DH) or null
  const State *h0, *c0, *n0, *m0;            // (B, NH, DH), all null for a fresh start
  Element* h;                                // (B, S, NH, DH)
  State *h_last, *c_last, *n_last, *m_last;  // (B, NH, DH)
  State* saved_gates;                        // (B, S, NH, 4, P): d, sf, u, w of cell.cuh; null when nothing is saved
  State* saved_cells;                        // (B, S, NH, 2, P): c, n after the step; null when nothing is saved
  bool single_step;                          // S = 1 in a decoding loop: no work that only many steps repay
};
template <class R, typename Element, typename State>
void read(R& r, ForwardParams<Element, State>& p) {
  r("shape", p.shape)("x", p.x)("x_gate_stride", p.x_gate_stride)("R", p.R)("b", p.b);
  r("h0", p.h0)("c0", p.c0)("n0", p.n0)("m0", p.m0)("h", p.h);
  r("h_last", p.h_last)("c_last", p.c_last)("n_last", p.n_last)("m_last", p.m_last);
  r("saved_gates", p.saved_gates)("saved_cells", p.saved_cells)("single_step", p.single_step);
}

template <typename Element, typename State = float>
struct BackwardParams {
  Shape shape;
  const State* R;                            // (4, NH, DH, DH)
  const State *h0, *c0, *n0;                 // (B, NH, DH), all null for a fresh start
  const State* saved_gates;                  // (B, S, NH, 4, P)
  const State* saved_cells;                  // (B, S, NH, 2, P)
  View<const Element> dh;                    // (B, S, NH, DH), or null for zero
  const State *dh_last, *dc_last, *dn_last;  // (B, NH, DH), each null for zero
  Element* dx;                               // (B, S, 4, NH, DH)
  State* h_prev;                             // (B, S, NH, DH): the h that entered each step, for dR = dx^T h_prev
  State* db_rows;                            // (B, 4, NH, DH): dx summed over each row's steps
  State *dh0, *dc0, *dn0, *dm0;              // (B, NH, DH)
};
template <class R, typename Element, typename State>
void read(R& r, BackwardParams<Element, State>& p) {
  r("shape", p.shape)("R", p.R)("h0", p.h0)("c0", p.c0)("n0", p.n0);
  r("saved_gates", p.saved_gates)("saved_cells", p.saved_cells);
  r("dh", p.dh)("dh_last", p.dh_last)("dc_last", p.dc_last)("dn_last", p.dn_last);
  r("dx", p.dx)("h_prev", p.h_prev)("db_rows", p.db_rows);
  r("dh0", p.dh0)("dc0", p.dc0)("dn0", p.dn0)("dm0", p.dm0);
}

}  // namespace xlstm::slstm
