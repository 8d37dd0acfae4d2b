// slstm_kernels.h - what one compilation of slstm_forward.cpp and slstm_backward.cpp offers to the launcher in slstm.cpp.
// A tile is a few rows of one head; it runs all their steps alone.  Rows of a tile never meet in an addition, so a row's
// bits do not depend on its tile.
#pragma once
#include <cstdint>

#include "cpu/slstm.h"

namespace xlstm::cpu {

struct RowTile {
  int64_t head;
  const int64_t* rows;  // (count), longest row first
  int64_t count;
};

// The units of a head are padded to whole cache lines of float in every scratch and saved tensor.
constexpr int64_t kUnitPadding = 16;
constexpr int64_t padded_units(int64_t DH) { return (DH + kUnitPadding - 1) / kUnitPadding * kUnitPadding; }

// pack lays out R of one head for the product of a step: 4 P P numbers, P = padded_units(DH).
// run takes that (forward: or null, for a single step), and scratch of scratch_size(P, tile.count) numbers, aligned to a cache
// line.
template <typename Real>
struct ForwardKernels {
  void (*pack)(const slstm::ForwardParams<Real, Real>& p, int64_t head, Real* packed);
  void (*run)(const slstm::ForwardParams<Real, Real>& p, const RowTile& tile, const Real* packed, Real* scratch);
};
template <typename Real>
struct BackwardKernels {
  void (*pack)(const slstm::BackwardParams<Real, Real>& p, int64_t head, Real* packed);
  void (*run)(const slstm::BackwardParams<Real, Real>& p, const RowTile& tile, const Real* packed, Real* scratch);
};
constexpr int64_t scratch_size(int64_t padded, int64_t count) { return (12 * count + 3) * padded; }

namespace baseline {
template <typename Real>
ForwardKernels<Real> forward_kernels();
template <typename Real>
BackwardKernels<Real> backward_kernels();
template <typename Real>
void recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int64_t task);
}  // namespace baseline
namespace avx2 {
template <typename Real>
ForwardKernels<Real> forward_kernels();
template <typename Real>
BackwardKernels<Real> backward_kernels();
template <typename Real>
void recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int64_t task);
}  // namespace avx2
namespace avx512 {
template <typename Real>
ForwardKernels<Real> forward_kernels();
template <typename Real>
BackwardKernels<Real> backward_kernels();
template <typename Real>
void recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int64_t task);
}  // namespace avx512

}  // namespace xlstm::cpu
