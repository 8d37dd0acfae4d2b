// mma_arithmetic.cpp - three models of what a tensor core computes: rounded once, summed in float32, or truncated as Hopper does.
#include <cmath>
#include <cstring>

#include "simt/state.h"

namespace xlstm::simt {
namespace {

template <class Sum>
inline __attribute__((always_inline)) void accumulate(const float* a, const float* b, float* d, int m, int n, int k) {
  for (int i = 0; i < m; ++i)
    for (int j0 = 0; j0 < n; j0 += 8) {
      Sum sum[8];
      for (int j = 0; j < 8; ++j) sum[j] = d[i * n + j0 + j];
      for (int l = 0; l < k; ++l)
        for (int j = 0; j < 8; ++j) sum[j] += Sum(a[i * k + l]) * Sum(b[l * n + j0 + j]);
      for (int j = 0; j < 8; ++j) d[i * n + j0 + j] = float(sum[j]);
    }
}
#if defined(__x86_64__)
#define XLSTM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define XLSTM_CLONES
#endif
XLSTM_CLONES void accumulate_float64(const float* a, const float* b, float* d, int m, int n, int k) {
  accumulate<double>(a, b, d, m, n, k);
}
XLSTM_CLONES void accumulate_float32(const float* a, const float* b, float* d, int m, int n, int k) {
  accumulate<float>(a, b, d, m, n, k);
}

int exponent(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const int biased = int(bits >> 23 & 255);
  return (biased ? biased : 1) - 127;
}
float toward_zero(double x) {
  const float f = float(x);
  if (std::isinf(f) && std::isfinite(x)) return std::copysign(3.402823466e38f, f);
  return std::fabs(double(f)) > std::fabs(x) ? std::nextafterf(f, 0.0f) : f;
}
// After Xie et al., "MMA-Sim" (arXiv 2511.10909): the K products and the addend are aligned to the largest exponent, truncated
// to 25 fraction bits, summed exactly; the sum is rounded toward zero.
void accumulate_hopper(const float* a, const float* b, float* d, int m, int n, int k) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float& out = d[i * n + j];
      int largest = exponent(out);
      double plain = out;
      for (int l = 0; l < k; ++l) {
        const float x = a[i * k + l], y = b[l * n + j];
        plain += double(x) * y;
        if (x != 0 && y != 0) largest = std::max(largest, exponent(x) + exponent(y));
      }
      if (!std::isfinite(plain)) {
        out = float(plain);
        continue;
      }
      const double scale = std::ldexp(1.0, 25 - largest);
      double sum = std::trunc(out * scale);
      for (int l = 0; l < k; ++l) sum += std::trunc(double(a[i * k + l]) * b[l * n + j] * scale);
      out = toward_zero(std::ldexp(sum, largest - 25));
    }
}

}  // namespace

void multiply_accumulate(const float* a, const float* b, float* d, int m, int n, int k) {
  switch (machine.options.mma) {
    case MmaModel::Float64:
      return accumulate_float64(a, b, d, m, n, k);
    case MmaModel::Float32:
      return accumulate_float32(a, b, d, m, n, k);
    case MmaModel::Hopper:
      return accumulate_hopper(a, b, d, m, n, k);
  }
}

}  // namespace xlstm::simt
