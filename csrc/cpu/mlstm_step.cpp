// mlstm_step.cpp - picks the instruction set and runs the rows on threads.
#include "cpu/mlstm_step.h"

#include "cpu/isa.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {
constexpr int64_t kWorthThreads = 500'000;  // entries of C; fewer are done before another thread has woken up
}

template <typename Real>
void mlstm_step(const MlstmStep<Real>& p, int threads) {
  auto* const row = XLSTM_OF_ISA(mlstm_step_row<Real>);
  if (p.rows * p.DHQK * p.DHHV < kWorthThreads) threads = 1;
  parallel_for(p.rows, threads, [&](int64_t index) { row(p, index); });
}

template void mlstm_step(const MlstmStep<float>&, int);
template void mlstm_step(const MlstmStep<double>&, int);

}  // namespace xlstm::cpu
