// mlstm_gates_row.cpp - M4-M6 for one row and W for one chunk, compiled once per instruction set (XLSTM_ISA names the namespace).
// Sums and exponents are double: b is a difference of large numbers when some forget gates are about -1e4.
#include <cmath>
#include <limits>

#include "cpu/mlstm_gates.h"
#include "device/math.cuh"

namespace xlstm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A NaN on either side stays one.
double larger(double a, double b) { return a > b || a != a ? a : b; }

// exp(x), x <= 0, without a branch, so that loops over it become vector code. The rounding of x to float is made up for.
float exponential(double x, float) {
  const double y = x * device::Constants<double>::log2e, bounded = y < -200 ? -200 : y;
  const float high = static_cast<float>(bounded), low = static_cast<float>(bounded - high);
  return device::exp2_approx(high) * (1 + low * device::Constants<float>::ln2);
}
double exponential(double x, double) { return std::exp(x); }

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
bool mlstm_gates_row(const MlstmGates<Real>& p, int64_t row) {
  double m_before = p.m0[row];
  bool any_reset = false;
  for (int64_t k = 0; k < p.chunks; ++k) {
    const int64_t chunk = k * p.rows + row, first = chunk * p.L;
    const double *const log_i = p.log_i + first, *const log_f = p.log_f + first;
    double *const beta = p.beta + first, *const rise = p.rise + first, *const m = p.m + first;
    int32_t* const segment = p.segment + first;
    double b = 0, highest = -kInfinity;  // highest: of log_i_j - b_j over the steps j that t sees
    int32_t resets = 0;
    for (int64_t t = 0; t < p.L; ++t) {
      const bool reset = log_f[t] == -kInfinity;
      if (reset) ++resets, highest = -kInfinity;
      if (!reset) b += log_f[t];
      beta[t] = log_i[t] - b, segment[t] = resets;
      // A reset with a closed input gate leaves the fresh state, whose m is 0.
      highest = larger(highest, reset && beta[t] == -kInfinity ? -b : beta[t]);
      rise[t] = p.sigmoid_igate ? -b : larger(resets ? -kInfinity : m_before, highest);  // (M6)
      if (rise[t] == -kInfinity) rise[t] = -b;
      m[t] = b + rise[t];
      p.u[first + t] = resets ? Real(0) : static_cast<Real>(std::exp(m_before - rise[t]));
    }
    double m_after = 0;
    if (!p.sigmoid_igate) {
      m_after = larger(resets ? -kInfinity : b + m_before, b + highest);  // (M5)
      // Rounded to the state's precision, so that a sequence split at a chunk border gives the same bits.
      m_after = m_after == -kInfinity ? 0 : static_cast<Real>(m_after);
    }
    for (int64_t j = 0; j < p.L; ++j)
      p.w[first + j] = segment[j] == resets ? static_cast<Real>(std::exp(b + beta[j] - m_after)) : Real(0);
    p.g[chunk] = resets ? Real(0) : static_cast<Real>(std::exp(b + m_before - m_after));
    m_before = m_after, any_reset |= resets > 0;
  }
  p.m_last[row] = static_cast<Real>(p.sigmoid_igate ? 0 : m_before);
  return any_reset;
}

template <typename Real>
void mlstm_weights_of_chunk(const MlstmWeights<Real>& p, int64_t matrix) {
  const double* const __restrict__ beta = p.beta + matrix * p.L, * const rise = p.rise + matrix * p.L;
  const int32_t* const segment = p.segment + matrix * p.L;
  int64_t start = 0;  // of the segment that t is in
  for (int64_t t = 0; t < p.L; ++t) {
    if (t > 0 && segment[t] != segment[t - 1]) start = t;
    Real* const __restrict__ W = p.W + (matrix * p.L + t) * p.L;
    const double rise_t = rise[t];
    for (int64_t j = 0; j < start; ++j) W[j] = 0;
    for (int64_t j = start; j <= t; ++j) W[j] = exponential(beta[j] - rise_t, Real());
    for (int64_t j = t + 1; j < p.L; ++j) W[j] = 0;
  }
}

template bool mlstm_gates_row(const MlstmGates<float>&, int64_t);
template bool mlstm_gates_row(const MlstmGates<double>&, int64_t);
template void mlstm_weights_of_chunk(const MlstmWeights<float>&, int64_t);
template void mlstm_weights_of_chunk(const MlstmWeights<double>&, int64_t);

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
