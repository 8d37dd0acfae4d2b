// mlstm_gates.cpp - picks the instruction set and runs rows and matrices on threads.
#include "cpu/mlstm_gates.h"

#include <atomic>

#include "cpu/isa.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {
constexpr int64_t kWorthThreads = 100'000;  // exponentials; fewer are done before another thread has woken up
}

template <typename Real>
bool mlstm_gates(const MlstmGates<Real>& p, int threads) {
  auto* const gates_of = XLSTM_OF_ISA(mlstm_gates_row<Real>);
  if (p.chunks * p.rows * p.L < kWorthThreads) threads = 1;
  std::atomic<bool> any_reset{false};
  parallel_for(p.rows, threads, [&](int64_t row) {
    if (gates_of(p, row)) any_reset = true;
  });
  return any_reset;
}

template <typename Real>
void mlstm_weights(const MlstmWeights<Real>& p, int threads) {
  auto* const weights_of = XLSTM_OF_ISA(mlstm_weights_of_chunk<Real>);
  if (p.matrices * p.L * p.L < kWorthThreads) threads = 1;
  parallel_for(p.matrices, threads, [&](int64_t matrix) { weights_of(p, matrix); });
}

template bool mlstm_gates(const MlstmGates<float>&, int);
template bool mlstm_gates(const MlstmGates<double>&, int);
template void mlstm_weights(const MlstmWeights<float>&, int);
template void mlstm_weights(const MlstmWeights<double>&, int);

}  // namespace xlstm::cpu
