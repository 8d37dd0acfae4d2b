// slstm.cpp - the recurrence on given gate inputs, over all steps at once.
#include "cpu/slstm.h"

#include "cpu/slstm_recurrence.h"

namespace xlstm::cpu {

template <typename Real>
void slstm_forward(const slstm::ForwardParams<Real, Real>& p, int threads) {
  Forward<Real>(p, forward_kernels<Real>(), threads).run(p, Steps{0, p.shape.S, 0, p.shape.S});
}

template <typename Real>
void slstm_backward(const slstm::BackwardParams<Real, Real>& p, int threads) {
  Backward<Real>(p, backward_kernels<Real>(), threads).run(p, Steps{0, p.shape.S, 0, p.shape.S});
}

template <typename Real>
void slstm_recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int threads) {
  auto* const task = XLSTM_OF_ISA(recurrent_gradient<Real>);
  if (p.tokens * 4 * p.NH * p.DH * p.DH < kWorthThreads) threads = 1;
  parallel_for(4 * p.NH, threads, [&](int64_t index) { task(p, index); });
}

template void slstm_recurrent_gradient(const SlstmRecurrentGradient<float>&, int);
template void slstm_recurrent_gradient(const SlstmRecurrentGradient<double>&, int);
template void slstm_forward(const slstm::ForwardParams<float, float>&, int);
template void slstm_forward(const slstm::ForwardParams<double, double>&, int);
template void slstm_backward(const slstm::BackwardParams<float, float>&, int);
template void slstm_backward(const slstm::BackwardParams<double, double>&, int);

}  // namespace xlstm::cpu
