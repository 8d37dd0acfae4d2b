// slstm_kernels.h - what one compilation of slstm_forward.cpp and slstm_backward.cpp offers to the launcher in slstm.cpp.
// A tile is a few rows of one head; it runs all their steps alone.  Rows of a tile never meet in an addition, so a row's
// bits do not depend on its tile.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
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

// The steps of every row that one run of a tile takes: all of them, or the next ones, where x and dx are held for a few steps
// only. x, dx and h_prev hold `held` steps of each batch, from step `first` of the tensors on.
struct Steps {
  int64_t begin, end;
  int64_t first, held;
};

// pack lays out R of one head for the product of a step: 4 P P numbers, P = padded_units(DH).
// run takes that (forward: or null, for a single step), and scratch of scratch_size(P, tile.count) numbers, aligned to a cache
// line, which carries the tile's state from one run to the next. Runs follow each other upwards forward, downwards backward, and
// cover all steps; several runs only without cu_seqlens.
template <typename Real>
struct ForwardKernels {
  void (*pack)(const slstm::ForwardParams<Real, Real>& p, int64_t head, Real* packed);
  void (*run)(const slstm::ForwardParams<Real, Real>& p, const RowTile& tile, const Steps& steps, const Real* packed,
              Real* scratch);
};
template <typename Real>
struct BackwardKernels {
  void (*pack)(const slstm::BackwardParams<Real, Real>& p, int64_t head, Real* packed);
  void (*run)(const slstm::BackwardParams<Real, Real>& p, const RowTile& tile, const Steps& steps, const Real* packed,
              Real* scratch);
};
constexpr int64_t scratch_size(int64_t padded, int64_t count) { return (12 * count + 3) * padded; }

// clang-format off
XLSTM_IN_EVERY_ISA(
  template <typename Real> ForwardKernels<Real> forward_kernels();
  template <typename Real> BackwardKernels<Real> backward_kernels();
  template <typename Real> void recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int64_t task);
)
// clang-format on

}  // namespace xlstm::cpu
