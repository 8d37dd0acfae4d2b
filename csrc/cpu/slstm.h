// slstm.h - the CPU backend of the sLSTM recurrence: all steps, forward and backward, float and double.
#pragma once
#include "slstm/params.h"

namespace xlstm::cpu {
// The bits of the result do not depend on `threads`, nor a row's bits on the other rows.
template <typename Real>
void slstm_forward(const slstm::ForwardParams<Real, Real>& p, int threads);
template <typename Real>
void slstm_backward(const slstm::BackwardParams<Real, Real>& p, int threads);
}  // namespace xlstm::cpu
