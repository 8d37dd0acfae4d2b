// two_float.cuh - sums carried as an unevaluated pair high + low of float32: about 48 bits, for prefix sums of log gates.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

struct TwoFloat {
  float high, low;
};

// a + b exactly (Knuth). No product occurs, so no contraction into an fma can spoil it.
XLSTM_DEVICE TwoFloat two_sum(float a, float b) {
  const float sum = __fadd_rn(a, b), b_part = __fadd_rn(sum, -a);
  return {sum, __fadd_rn(__fadd_rn(a, -__fadd_rn(sum, -b_part)), __fadd_rn(b, -b_part))};
}

XLSTM_DEVICE TwoFloat renormalise(float high, float low) {  // |high| >= |low|
  const float sum = __fadd_rn(high, low);
  return {sum, __fadd_rn(low, -__fadd_rn(sum, -high))};
}

XLSTM_DEVICE TwoFloat operator+(TwoFloat a, TwoFloat b) {
  const TwoFloat high = two_sum(a.high, b.high), low = two_sum(a.low, b.low);
  const TwoFloat sum = renormalise(high.high, __fadd_rn(high.low, low.high));
  return renormalise(sum.high, __fadd_rn(sum.low, low.low));
}
XLSTM_DEVICE TwoFloat operator+(TwoFloat a, float b) { return a + TwoFloat{b, 0.0f}; }
XLSTM_DEVICE TwoFloat operator-(TwoFloat a) { return {-a.high, -a.low}; }
XLSTM_DEVICE TwoFloat operator-(TwoFloat a, TwoFloat b) { return a + -b; }

XLSTM_DEVICE float to_float(TwoFloat a) { return a.high + a.low; }

}  // namespace xlstm::device
