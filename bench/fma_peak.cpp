// fma_peak.cpp - the most multiply-adds a core can do: of vectors that stay in its registers. bench/kernels.py compiles and calls it.
using Vector = float __attribute__((vector_size(sizeof(float) * LANES)));

// Twelve sums, because a multiply-add waits about four cycles for the one before it, and up to three start in a cycle (x86).
extern "C" float multiply_adds(long rounds) {
  Vector sum[12], factor = {}, summand = {};
  factor += 0.999f, summand += 1e-3f;
  for (int i = 0; i < 12; ++i) sum[i] = summand * static_cast<float>(i);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = sum[i] * factor + summand;
  }
  for (int i = 1; i < 12; ++i) sum[0] += sum[i];
  return sum[0][0];
}
