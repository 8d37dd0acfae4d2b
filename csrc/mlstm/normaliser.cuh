// normaliser.cuh - the quotient of M3: 1 / (max(|d|, exp(-m)) + eps), d = s q.n.
#pragma once
#include <cfloat>

#include "device/language.cuh"

namespace xlstm::mlstm {

struct Normaliser {
  float factor;  // 0 if the denominator is 0; at most FLT_MAX, so that it leaves a numerator of 0 at 0
  bool active;   // |d| is above its floor
};

// Numerator and denominator are multiplied by exp(min(m, 0)), so no exponent is positive. Comparisons keep a NaN of d or m.
XLSTM_DEVICE Normaliser normaliser_of(float d, float m, float eps) {
  const float shrink = expf(fminf(m, 0.0f)), floor = expf(-fmaxf(m, 0.0f)), size = fabsf(d) * shrink;
  const bool active = !(size <= floor);
  const float denominator = (active ? size : floor) + eps * shrink, quotient = denominator == 0.0f ? 0.0f : shrink / denominator;
  return {quotient > FLT_MAX ? FLT_MAX : quotient, active};
}

}  // namespace xlstm::mlstm
