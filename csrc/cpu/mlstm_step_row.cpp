// mlstm_step_row.cpp - M1-M3 for one row, compiled once per instruction set (XLSTM_ISA names the namespace).
// C is read and written once; the output is accumulated while its rows pass. Gates and the dot product q.n, which may cancel, are
// computed in double: a row has only DHQK of them.
#include <cmath>
#include <limits>

#include "cpu/mlstm_step.h"

namespace xlstm::cpu {
namespace {

double log_sigmoid(double x) { return (x < 0 || x != x ? x : 0.0) - std::log1p(std::exp(-std::abs(x))); }

// A NaN on either side stays one.
double larger(double a, double b) { return a > b || a != a ? a : b; }

// (M3): what s q C is multiplied with. Written so that exp(-m) cannot overflow; a denominator below the normal numbers counts as
// 0.
template <typename Real>
double normaliser(const MlstmStep<Real>& p, double dot, double m) {
  if (!p.normalize) return 1;
  const double shrink = std::exp(m > 0 ? 0.0 : m), floor = std::exp(m < 0 ? 0.0 : -m);
  const double denominator = larger(std::abs(dot) * shrink, floor) + p.eps * shrink;
  return denominator < std::numeric_limits<Real>::min() ? 0.0 : shrink / denominator;
}

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
void mlstm_step_row(const MlstmStep<Real>& p, int64_t row) {
  const Real* const q = p.q + row * p.DHQK;
  const Real* const k = p.k + row * p.DHQK;
  const Real* const v = p.v + row * p.DHHV;
  const Real* const n = p.n + row * p.DHQK;
  Real* const n_last = p.n_last + row * p.DHQK;
  Real* const __restrict__ h = p.h + row * p.DHHV;

  const double log_f = log_sigmoid(p.f[row]), log_i = p.sigmoid_igate() ? log_sigmoid(p.i[row]) : p.i[row];
  const double kept = log_f + p.m[row];
  double m = p.sigmoid_igate() ? 0.0 : larger(kept, log_i);
  if (m == -std::numeric_limits<double>::infinity()) m = 0;  // both gates closed on a fresh state leave it fresh
  m = static_cast<Real>(m);                                  // as it is stored, so that the next step continues from this one
  const Real forget = static_cast<Real>(std::exp(kept - m)), write = static_cast<Real>(std::exp(log_i - m));

  double dot = 0;
  for (int64_t j = 0; j < p.DHHV; ++j) h[j] = 0;
  for (int64_t d = 0; d < p.DHQK; ++d) {
    const Real written = write * k[d], read = q[d];
    n_last[d] = forget * n[d] + written;
    dot += static_cast<double>(read) * n_last[d];
    const Real* const C = p.C + (row * p.DHQK + d) * p.DHHV;
    Real* const C_last = p.C_last + (row * p.DHQK + d) * p.DHHV;
#pragma GCC ivdep
    for (int64_t j = 0; j < p.DHHV; ++j) {
      const Real c = forget * C[j] + written * v[j];
      C_last[j] = c;
      h[j] += read * c;
    }
  }
  const Real factor = static_cast<Real>(p.scale * normaliser(p, p.scale * dot, m));
  for (int64_t j = 0; j < p.DHHV; ++j) h[j] *= factor;
  p.m_last[row] = static_cast<Real>(m);
}

template void mlstm_step_row(const MlstmStep<float>&, int64_t);
template void mlstm_step_row(const MlstmStep<double>&, int64_t);

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
