// mlstm.cpp - picks the instruction set and runs the heads of all sequences on threads.
#include "cpu/mlstm.h"

#include "cpu/isa.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kWorthThreads = 1'000'000;  // multiply-adds; fewer are done before another thread has woken up

template <typename Real>
bool worth_threads(const MlstmInputs<Real>& p) {
  const int64_t L = p.L ? p.L : chunk_length(p.S, p.DHQK, p.DHHV);
  return p.B * p.S * p.NH * (p.DHQK * p.DHHV + L * (p.DHQK + p.DHHV)) >= kWorthThreads;
}

}  // namespace

template <typename Real>
void mlstm_forward(const MlstmForward<Real>& p, int threads) {
  auto* const task = XLSTM_OF_ISA(mlstm_forward_task<Real>);
  parallel_for(p.N * p.NH, worth_threads(p) ? threads : 1, [&](int64_t index) { task(p, index); });
}

template <typename Real>
void mlstm_backward(const MlstmBackward<Real>& p, int threads) {
  auto* const task = XLSTM_OF_ISA(mlstm_backward_task<Real>);
  parallel_for(p.N * p.NH, worth_threads(p) ? threads : 1, [&](int64_t index) { task(p, index); });
}

template void mlstm_forward(const MlstmForward<float>&, int);
template void mlstm_forward(const MlstmForward<double>&, int);
template void mlstm_backward(const MlstmBackward<float>&, int);
template void mlstm_backward(const MlstmBackward<double>&, int);

}  // namespace xlstm::cpu
