// slstm_rows.h - where a row's steps lie, and small loops over units, for the files compiled once per instruction set.
#pragma once
#include "cpu/slstm_kernels.h"
#include "device/language.cuh"

namespace xlstm::cpu {
namespace {

XLSTM_HOST_DEVICE int64_t row_length(const slstm::Shape& s, int64_t row) {
  return s.cu_seqlens ? s.cu_seqlens[row + 1] - s.cu_seqlens[row] : s.S;
}
// (b, s) of step t of a row in tensors of shape (B, S, ...), which are (1, S, ...) with cu_seqlens.
struct Position {
  int64_t b, s;
};
XLSTM_HOST_DEVICE Position position(const slstm::Shape& s, int64_t row, int64_t t) {
  return s.cu_seqlens ? Position{0, s.cu_seqlens[row] + t} : Position{row, t};
}
XLSTM_HOST_DEVICE bool is_reset(const slstm::Shape& s, Position at) {
  return s.reset.data && s.reset.data[at.b * s.reset.batch + at.s * s.reset.step];
}

template <typename Real>
XLSTM_HOST_DEVICE void fill(Real* to, Real value, int64_t count) {
  for (int64_t j = 0; j < count; ++j) to[j] = value;
}
// Null reads as zero.
template <typename Real>
XLSTM_HOST_DEVICE void copy(Real* __restrict__ to, const Real* __restrict__ from, int64_t count) {
  if (!from) return fill(to, Real(0), count);
  for (int64_t j = 0; j < count; ++j) to[j] = from[j];
}
// to = a + b; null b reads as zero.
template <typename Real>
XLSTM_HOST_DEVICE void add(Real* __restrict__ to, const Real* __restrict__ a, const Real* __restrict__ b, int64_t count) {
  if (!b) return copy(to, a, count);
  for (int64_t j = 0; j < count; ++j) to[j] = a[j] + b[j];
}

// Asks for numbers that the next step reads: the rows of a tile lie in more streams than a CPU follows by itself.
template <typename Real>
XLSTM_HOST_DEVICE void prefetch(const Real* from, int64_t count) {
  for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(Real))) __builtin_prefetch(from + j);
}

}  // namespace
}  // namespace xlstm::cpu
