// slstm_layer.h - the CPU's sLSTM with the input projection of its gates, x = W input: x and its gradient are made a few steps at
// a time, for as many tokens as stay in cache, and never held whole.
#pragma once
#include "slstm/params.h"

namespace xlstm::cpu {

// F features and DH are multiples of 16; no cu_seqlens; at least one step. The rows of `input` have unit stride.
template <typename Real>
struct SlstmLayerForward {
  slstm::ForwardParams<Real, Real> cell;  // without x
  int64_t F;
  View<const Real> input;  // (B, S, F)
  const Real* W;           // (4, NH, DH, F)
};
template <class R, typename Real>
void read(R& r, SlstmLayerForward<Real>& p) {
  read(r, p.cell);
  r("F", p.F)("input", p.input)("W", p.W);
}

template <typename Real>
struct SlstmLayerBackward {
  slstm::BackwardParams<Real, Real> cell;  // without dx and h_prev
  int64_t F;
  View<const Real> input;  // (B, S, F)
  const Real* W;           // (4, NH, DH, F)
  Real* dinput;            // (B, S, F)
  Real* dW;                // (4, NH, DH, F)
  Real* dR;                // (4, NH, DH, DH)
};
template <class R, typename Real>
void read(R& r, SlstmLayerBackward<Real>& p) {
  read(r, p.cell);
  r("F", p.F)("input", p.input)("W", p.W);
  r("dinput", p.dinput)("dW", p.dW)("dR", p.dR);
}

// The bits of h and dinput of a row depend on that row alone, and no bits depend on `threads`.
template <typename Real>
void slstm_layer_forward(const SlstmLayerForward<Real>& p, int threads);
template <typename Real>
void slstm_layer_backward(const SlstmLayerBackward<Real>& p, int threads);

}  // namespace xlstm::cpu
