// gate_math.h - the gate functions over arrays, on the selected instruction set. For tests.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace xlstm::cpu {

enum class GateFunction : int { kExp2, kLog2, kLog2Of1p, kRcp, kSigmoid, kLogSigmoid };

// clang-format off
XLSTM_IN_EVERY_ISA(
  void gate_math(GateFunction function, const float* x, float* y, int64_t count);
)
// clang-format on

}  // namespace xlstm::cpu
