// layer_rows.h - what layers do with single rows of features: SiLU, a causal convolution, layer norm of a head. Included only by
// files that are compiled once per instruction set; everything here is inlined.
#pragma once
#include <cmath>

#include "cpu/tile.h"

namespace xlstm::cpu {
namespace {

// 1 / (1 + exp(-x)), with an exponential that never overflows.
template <typename Real>
XLSTM_DEVICE Vector<Real> sigmoid(Vector<Real> x) {
  constexpr Real log2e = Real(1.4426950408889634);
  const Vector<Real> e = exp2<Real>((x < 0 ? x : -x) * log2e), s = Real(1) / (Real(1) + e);
  return x < 0 ? e * s : s;
}

// The sum over the lanes, in every lane.
template <typename Real, int s, int... lane>
XLSTM_DEVICE Vector<Real> exchanged(Vector<Real> x, std::integer_sequence<int, lane...>) {
  return shuffled<Real, (lane ^ s)...>(x, x);
}
template <typename Real, int s = 1>
XLSTM_DEVICE Vector<Real> sum_across(Vector<Real> x) {
  if constexpr (s < kLanes<Real>) {
    return sum_across<Real, 2 * s>(x + exchanged<Real, s>(x, std::make_integer_sequence<int, kLanes<Real>>()));
  } else {
    return x;
  }
}

// Mean and 1 / sqrt(variance + eps) of `count` numbers, whole vectors, in every lane.
template <typename Real>
struct Moments {
  Vector<Real> mean, inverse;

  XLSTM_DEVICE Moments(const Real* x, int64_t count, Real eps) {
    Vector<Real> sum = {}, squares = {};
    for (int64_t d = 0; d < count; d += kLanes<Real>) sum += load(x + d);
    mean = sum_across<Real>(sum) * (Real(1) / static_cast<Real>(count));
    for (int64_t d = 0; d < count; d += kLanes<Real>) {
      const Vector<Real> off = load(x + d) - mean;
      squares += off * off;
    }
    const Real variance = sum_across<Real>(squares)[0] / static_cast<Real>(count);
    inverse = Vector<Real>{} + Real(1) / std::sqrt(variance + eps);
  }
  XLSTM_DEVICE Vector<Real> of(Vector<Real> x) const { return (x - mean) * inverse; }
};

}  // namespace
}  // namespace xlstm::cpu
