// slstm.h - the CPU backend of the sLSTM recurrence: all steps, forward and backward, float and double.
#pragma once
#include "slstm/params.h"

namespace xlstm::cpu {
// The bits of the result do not depend on `threads`, nor a row's bits on the other rows.
template <typename Real>
void slstm_forward(const slstm::ForwardParams<Real, Real>& p, int threads);
template <typename Real>
void slstm_backward(const slstm::BackwardParams<Real, Real>& p, int threads);

// dR = sum over tokens of dx h_prev^T, one gate of one head a task. DH is whole vectors.
template <typename Real>
struct SlstmRecurrentGradient {
  int64_t tokens = 0, NH = 0, DH = 0;
  const Real *dx = nullptr, *h_prev = nullptr;  // (tokens, 4, NH, DH), (tokens, NH, DH)
  Real* dR = nullptr;                           // (4, NH, DH out, DH in)
};
template <class R, typename Real>
void read(R& r, SlstmRecurrentGradient<Real>& p) {
  r("tokens", p.tokens)("NH", p.NH)("DH", p.DH)("dx", p.dx)("h_prev", p.h_prev)("dR", p.dR);
}
template <typename Real>
void slstm_recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int threads);
}  // namespace xlstm::cpu
