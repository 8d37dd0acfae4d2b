// conv_tile.cpp - the convolution over one or some steps of a row, vectorised over features, compiled once per instruction set
// (XLSTM_ISA names the namespace).
#include <algorithm>

#include "cpu/conv.h"

namespace xlstm::cpu {
namespace {

// out += a b over D features
template <typename Real>
void multiply_add(int64_t D, const Real* __restrict__ a, const Real* __restrict__ b, Real* __restrict__ out) {
  for (int64_t d = 0; d < D; ++d) out[d] += a[d] * b[d];
}

// Whether step s sees its tap j.
template <typename Pass>
bool sees(const Pass& p, int64_t b, int64_t s, int64_t j) {
  if (!p.part) return true;
  const int64_t* const part = p.part + b * p.shape.padded() + s;
  return part[j] == part[p.shape.K - 1];
}

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
void conv_step_row(const ConvStep<Real>& p, int64_t b) {
  const int64_t D = p.D, K = p.K, before = (K - 1) * D;
  Real *const window = p.window + b * K * D, *const y = p.y + b * D;
  if (p.held) {
    const Real* const end = p.held + (b + 1) * p.held_steps * D;
    std::copy(end - before, end, window);
  } else {
    std::fill(window, window + before, Real(0));
  }
  std::copy(p.x + b * D, p.x + (b + 1) * D, window + before);
  std::copy(p.b, p.b + D, y);
  for (int64_t j = 0; j < K; ++j)  // the order of conv_forward_tile, for the same bits
    for (int64_t d = 0; d < D; ++d) y[d] += p.w[d * K + j] * window[j * D + d];
}

template <typename Real>
void conv_forward_tile(const ConvForward<Real>& p, int64_t b, int64_t first, int64_t end) {
  const auto [B, S, D, K] = p.shape;
  for (int64_t s = first; s < end; ++s) {
    Real* const y = p.y + (b * S + s) * D;
    const Real* const x = p.x + (b * p.shape.padded() + s) * D;
    std::copy(p.b, p.b + D, y);
    for (int64_t j = 0; j < K; ++j) {
      if (sees(p, b, s, j)) multiply_add(D, p.w + j * D, x + j * D, y);
    }
  }
}

template <typename Real>
void conv_backward_tile(const ConvBackward<Real>& p, int64_t b, int64_t first, int64_t end, Real* sums) {
  const auto [B, S, D, K] = p.shape;
  std::fill(sums, sums + (K + 1) * D, Real(0));
  for (int64_t t = first; t < end; ++t) {
    Real* const dx = p.dx + (b * p.shape.padded() + t) * D;
    std::fill(dx, dx + D, Real(0));
    for (int64_t j = std::max<int64_t>(0, t - S + 1); j < K && j <= t; ++j) {
      if (sees(p, b, t - j, j)) multiply_add(D, p.w + j * D, p.dy + (b * S + t - j) * D, dx);
    }
    if (t >= S) continue;
    const Real* const dy = p.dy + (b * S + t) * D;
    const Real* const x = p.x + (b * p.shape.padded() + t) * D;
    for (int64_t j = 0; j < K; ++j) {
      if (sees(p, b, t, j)) multiply_add(D, dy, x + j * D, sums + j * D);
    }
    for (int64_t d = 0; d < D; ++d) sums[K * D + d] += dy[d];
  }
}

template void conv_step_row(const ConvStep<float>&, int64_t);
template void conv_step_row(const ConvStep<double>&, int64_t);
template void conv_forward_tile(const ConvForward<float>&, int64_t, int64_t, int64_t);
template void conv_forward_tile(const ConvForward<double>&, int64_t, int64_t, int64_t);
template void conv_backward_tile(const ConvBackward<float>&, int64_t, int64_t, int64_t, float*);
template void conv_backward_tile(const ConvBackward<double>&, int64_t, int64_t, int64_t, double*);

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
