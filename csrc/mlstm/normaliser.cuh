// normaliser.cuh - the denominator of M3, max(|d|, exp(-m)) + eps with d = s q.n, and the quotient 1 / it.
#pragma once
#include <cfloat>

#include "device/language.cuh"

namespace xlstm::mlstm {

// Both sides of M3's quotient are multiplied by shrink = exp(min(m, 0)), so no exponent is positive and nothing overflows below
// m = -88. A denominator below the smallest normal number has no inverse that float32 holds: it counts as 0, and h is 0 then
// (README.md, Limits).
struct Denominator {
  float value;   // of the denominator times shrink; 0 or a normal number, whose inverse is at most 2^126
  float shrink;  // of the numerator
  bool active;   // |d| is above its floor
};

// Comparisons keep a NaN of d or m.
XLSTM_DEVICE Denominator denominator_of(float d, float m, float eps) {
  const float shrink = expf(fminf(m, 0.0f)), floor = expf(-fmaxf(m, 0.0f)), size = fabsf(d) * shrink;
  const bool active = !(size <= floor);
  const float value = (active ? size : floor) + eps * shrink;
  return {value < FLT_MIN ? 0.0f : value, shrink, active};
}

struct Normaliser {
  float factor;  // 0 where the denominator is, so that h is 0 and passes no gradient
  bool active;
};

XLSTM_DEVICE Normaliser normaliser_of(float d, float m, float eps) {
  const Denominator denominator = denominator_of(d, m, eps);
  return {denominator.value == 0.0f ? 0.0f : denominator.shrink / denominator.value, denominator.active};
}

}  // namespace xlstm::mlstm
