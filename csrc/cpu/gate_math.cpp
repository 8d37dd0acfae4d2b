// gate_math.cpp - the functions of device/math.cuh over an array, so that a test sees the very vector code of each instruction
// set.
#include "cpu/gate_math.h"

#include "device/math.cuh"

namespace xlstm::cpu {
namespace XLSTM_ISA {
namespace {

template <float (*function)(float)>
void over(const float* __restrict__ x, float* __restrict__ y, int64_t count) {
  for (int64_t j = 0; j < count; ++j) y[j] = function(x[j]);
}

constexpr void (*kOver[])(const float*, float*, int64_t) = {// in the order of GateFunction
                                                            over<device::exp2_approx>, over<device::log2_approx>,
                                                            over<device::log2_1p>,     over<device::rcp_approx>,
                                                            over<device::sigmoid>,     over<device::log_sigmoid>};

}  // namespace

void gate_math(GateFunction function, const float* x, float* y, int64_t count) { kOver[static_cast<int>(function)](x, y, count); }

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
