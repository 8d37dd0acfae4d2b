// conv.h - the blocks' causal depthwise convolution on a CPU, float and double.
//   y_s = b + sum_j w_j x_{s+j}            x (B, S+K-1, D), w (K, D), b (D), y (B, S, D), all contiguous
//   dx_t = sum_j w_j dy_{t-j},  dw_j = sum_{b,s} dy_s x_{s+j},  db = sum_{b,s} dy_s
// With part (B, S+K-1) step s, whose own input is x_{s+K-1}, sees only inputs of the same part.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace xlstm::cpu {

struct ConvShape {
  int64_t B = 0, S = 0, D = 0, K = 0;
  int64_t padded() const { return S + K - 1; }
};
template <class R>
void read(R& r, ConvShape& s) {
  r("B", s.B)("S", s.S)("D", s.D)("K", s.K);
}

// Steps of a tile, the unit of work of a thread; sums over steps are kept per tile, so the bits do not depend on the threads.
constexpr int64_t kConvTile = 128;
constexpr int64_t conv_tiles(int64_t steps) { return (steps + kConvTile - 1) / kConvTile; }

template <typename Real>
struct ConvForward {
  ConvShape shape;
  const Real *x = nullptr, *w = nullptr, *b = nullptr;
  const int64_t* part = nullptr;  // or null: all of one
  Real* y = nullptr;
};
template <class R, typename Real>
void read(R& r, ConvForward<Real>& p) {
  read(r, p.shape);
  r("part", p.part)("x", p.x)("w", p.w)("b", p.b)("y", p.y);
}

template <typename Real>
struct ConvBackward {
  ConvShape shape;
  const Real *x = nullptr, *w = nullptr, *dy = nullptr;
  const int64_t* part = nullptr;
  Real* dx = nullptr;
  Real* sums = nullptr;  // (B, conv_tiles(S + K - 1), K + 1, D): dw_j and then db of every tile
};
template <class R, typename Real>
void read(R& r, ConvBackward<Real>& p) {
  read(r, p.shape);
  r("part", p.part)("x", p.x)("w", p.w)("dy", p.dy)("dx", p.dx)("sums", p.sums);
}

// One step. window: the last K - 1 inputs held (zeros without any), then x. The weight is read as the parameter has it.
template <typename Real>
struct ConvStep {
  int64_t B = 0, D = 0, K = 0, held_steps = 0;                           // held_steps: K - 1 or K
  const Real *x = nullptr, *held = nullptr, *w = nullptr, *b = nullptr;  // (B, D), (B, held_steps, D) or null, (D, K), (D)
  Real *window = nullptr, *y = nullptr;                                  // (B, K, D), (B, D)
};
template <class R, typename Real>
void read(R& r, ConvStep<Real>& p) {
  r("B", p.B)("D", p.D)("K", p.K)("held_steps", p.held_steps);
  r("x", p.x)("held", p.held)("w", p.w)("b", p.b)("window", p.window)("y", p.y);
}

// clang-format off
template <typename Real> void conv_step(const ConvStep<Real>& p, int threads);
template <typename Real> void conv_forward(const ConvForward<Real>& p, int threads);
template <typename Real> void conv_backward(const ConvBackward<Real>& p, int threads);

// Row b of a step, and steps [first, end) of a row, compiled once per instruction set; backward's are steps of the padded input.
XLSTM_IN_EVERY_ISA(
  template <typename Real> void conv_step_row(const ConvStep<Real>& p, int64_t b);
  template <typename Real> void conv_forward_tile(const ConvForward<Real>& p, int64_t b, int64_t first, int64_t end);
  template <typename Real>
  void conv_backward_tile(const ConvBackward<Real>& p, int64_t b, int64_t first, int64_t end, Real* sums);
)
// clang-format on

}  // namespace xlstm::cpu
