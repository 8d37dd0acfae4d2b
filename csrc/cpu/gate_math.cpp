// gate_math.cpp - the functions of device/math.cuh over an array, so that a test sees the very vector code of each instruction
// set.
#include "cpu/gate_math.h"

#include "device/math.cuh"

namespace xlstm::cpu {
namespace XLSTM_ISA {

void gate_math(GateFunction function, const float* __restrict__ x, float* __restrict__ y, int64_t count) {
  switch (function) {
    case GateFunction::kExp2:
      for (int64_t j = 0; j < count; ++j) y[j] = device::exp2_approx(x[j]);
      break;
    case GateFunction::kLog2:
      for (int64_t j = 0; j < count; ++j) y[j] = device::log2_approx(x[j]);
      break;
    case GateFunction::kLog2Of1p:
      for (int64_t j = 0; j < count; ++j) y[j] = device::log2_1p(x[j]);
      break;
    case GateFunction::kRcp:
      for (int64_t j = 0; j < count; ++j) y[j] = device::rcp_approx(x[j]);
      break;
    case GateFunction::kSigmoid:
      for (int64_t j = 0; j < count; ++j) y[j] = device::sigmoid(x[j]);
      break;
    case GateFunction::kLogSigmoid:
      for (int64_t j = 0; j < count; ++j) y[j] = device::log_sigmoid(x[j]);
      break;
  }
}

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
