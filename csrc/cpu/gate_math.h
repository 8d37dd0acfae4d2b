// gate_math.h - the gate functions over arrays, on the selected instruction set. For tests.
#pragma once
#include <cstdint>

namespace xlstm::cpu {

enum class GateFunction : int { kExp2, kLog2, kLog2Of1p, kRcp, kSigmoid, kLogSigmoid };

namespace baseline {
void gate_math(GateFunction function, const float* x, float* y, int64_t count);
}
namespace avx2 {
void gate_math(GateFunction function, const float* x, float* y, int64_t count);
}
namespace avx512 {
void gate_math(GateFunction function, const float* x, float* y, int64_t count);
}

}  // namespace xlstm::cpu
