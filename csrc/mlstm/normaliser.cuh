// normaliser.cuh - the denominator of M3, max(|d|, exp(-m)) + eps with d = s q.n, and the quotient 1 / it.
#pragma once
#include <cfloat>

#include "device/language.cuh"

namespace xlstm::mlstm {

// Both sides of M3's quotient are multiplied by shrink = exp(min(m, 0)), so no exponent is positive and nothing overflows below
// m = -88.
struct Denominator {
  float value;   // of the denominator times shrink; 0 only where eps is 0 and exp(-m) underflows: h is 0 then
  float shrink;  // of the numerator
  bool active;   // |d| is above its floor
};

// Comparisons keep a NaN of d or m.
XLSTM_DEVICE Denominator denominator_of(float d, float m, float eps) {
  const float shrink = expf(fminf(m, 0.0f)), floor = expf(-fmaxf(m, 0.0f)), size = fabsf(d) * shrink;
  const bool active = !(size <= floor);
  return {(active ? size : floor) + eps * shrink, shrink, active};
}

struct Normaliser {
  float factor;  // 0 if the denominator is 0; at most FLT_MAX, so that it leaves a numerator of 0 at 0
  bool active;
};

XLSTM_DEVICE Normaliser normaliser_of(float d, float m, float eps) {
  const Denominator denominator = denominator_of(d, m, eps);
  const float quotient = denominator.value == 0.0f ? 0.0f : denominator.shrink / denominator.value;
  return {quotient > FLT_MAX ? FLT_MAX : quotient, denominator.active};
}

}  // namespace xlstm::mlstm
