// mlstm_step.h - one token of the mLSTM on a CPU (M1-M3 of csrc/mlstm/README.md), float and double.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/mlstm_options.h"

namespace xlstm::cpu {

// A row is one head of one sequence. All tensors are contiguous: q, k (rows, DHQK), v (rows, DHHV), i, f, m (rows),
// C (rows, DHQK, DHHV), n (rows, DHQK), h (rows, DHHV). The *_last are the new state, which may be the old one.
template <typename Real>
struct MlstmStep : MlstmOptions<Real> {
  int64_t rows = 0, DHQK = 0, DHHV = 0;
  const Real *q = nullptr, *k = nullptr, *v = nullptr, *i = nullptr, *f = nullptr;
  const Real *C = nullptr, *n = nullptr, *m = nullptr;
  Real *h = nullptr, *C_last = nullptr, *n_last = nullptr, *m_last = nullptr;
};
template <class R, typename Real>
void read(R& r, MlstmStep<Real>& p) {
  r("shape", p.rows, p.DHQK, p.DHHV);
  r("q", p.q)("k", p.k)("v", p.v)("i", p.i)("f", p.f)("C", p.C)("n", p.n)("m", p.m);
  r("h", p.h)("C_last", p.C_last)("n_last", p.n_last)("m_last", p.m_last);
  r("options", static_cast<MlstmOptions<Real>&>(p));
}

// clang-format off
template <typename Real> void mlstm_step(const MlstmStep<Real>& p, int threads);

// One row, compiled once per instruction set.
XLSTM_IN_EVERY_ISA(
  template <typename Real> void mlstm_step_row(const MlstmStep<Real>& p, int64_t row);
)
// clang-format on

}  // namespace xlstm::cpu
