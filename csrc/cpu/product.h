// product.h - the matrix product of one step: out[row] += a[row] W for the few rows of a tile.  Included only by files that are
// compiled once per instruction set; everything here is inlined, nothing is shared between those compilations.
//
// W (K, N) is packed in panels of one cache line: panel p holds W[k][16 p .. 16 p + 15] for k = 0, 1, ..., so the inner loop
// reads it front to back.  Every sum runs over k in order in one accumulator: its bits depend on nothing else.
#pragma once
#include <cstdint>

#include "cpu/vector.h"
#include "device/language.cuh"

namespace xlstm::cpu {
namespace {

constexpr int kPanelBytes = 64, kVectors = kPanelBytes / kVectorBytes;
constexpr int kRowsAtOnce = 8 / kVectors;

template <int ROWS, typename Real>
XLSTM_HOST_DEVICE void panel_product(const Real* a, int64_t a_stride, int64_t K, const Real* panel, Real* out,
                                     int64_t out_stride) {
  constexpr int lanes = kLanes<Real>;
  Vector<Real> acc[ROWS][kVectors] = {};
  for (int64_t k = 0; k < K; ++k) {
    const Vector<Real>* w = reinterpret_cast<const Vector<Real>*>(panel) + k * kVectors;
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[row][v] += a[row * a_stride + k] * w[v];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vector<Real>*>(out + row * out_stride + v * lanes) += acc[row][v];
  }
}

// out (rows, N) += a (rows, K) W.  N is a multiple of the panel; out and packed are aligned to kPanelBytes.
template <typename Real>
void product(int64_t rows, const Real* a, int64_t a_stride, int64_t K, const Real* packed, int64_t N, Real* out,
             int64_t out_stride) {
  constexpr int64_t width = kPanelBytes / sizeof(Real);
  for (int64_t column = 0; column < N; column += width, packed += K * width) {
    int64_t row = 0;
    for (; row + kRowsAtOnce <= rows; row += kRowsAtOnce) {
      panel_product<kRowsAtOnce>(a + row * a_stride, a_stride, K, packed, out + row * out_stride + column, out_stride);
    }
    for (; row + 2 <= rows; row += 2) {
      panel_product<2>(a + row * a_stride, a_stride, K, packed, out + row * out_stride + column, out_stride);
    }
    for (; row < rows; ++row) {
      panel_product<1>(a + row * a_stride, a_stride, K, packed, out + row * out_stride + column, out_stride);
    }
  }
}

// out[row][j] += <w_j, a[row]> for `outputs` unpacked rows w_j of K numbers: for a single step, where packing would cost more
// than the product. The order of the sum is another than above, and again its own alone.
template <typename Real>
void product_unpacked(int64_t rows, const Real* a, int64_t a_stride, int64_t K, const Real* w, int64_t outputs, Real* out,
                      int64_t out_stride) {
  constexpr int64_t lanes = kLanes<Real>;
  const int64_t whole = K / lanes * lanes;
  for (int64_t j = 0; j < outputs; j += 4) {
    const Real* w_of[4];
    for (int64_t i = 0; i < 4; ++i) w_of[i] = w + (j + i < outputs ? j + i : j) * K;
    for (int64_t row = 0; row < rows; ++row) {
      const Real* const a_row = a + row * a_stride;
      Vector<Real> acc[4] = {};
      for (int64_t k = 0; k < whole; k += lanes) {
        const Vector<Real> a_k = load(a_row + k);
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) acc[i] += a_k * load(w_of[i] + k);
      }
      for (int64_t i = 0; i < 4 && j + i < outputs; ++i) {
        Real sum = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) sum += acc[i][lane];
        for (int64_t k = whole; k < K; ++k) sum += a_row[k] * w_of[i][k];
        out[row * out_stride + j + i] += sum;
      }
    }
  }
}

}  // namespace
}  // namespace xlstm::cpu
