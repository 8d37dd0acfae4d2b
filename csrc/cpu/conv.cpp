// conv.cpp - picks the instruction set and runs the tiles on threads.
#include "cpu/conv.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kWorthThreads = 200'000;  // multiply-adds; fewer are done before another thread has woken up

template <typename Tile>
void run(const ConvShape& shape, int64_t steps, int threads, const Tile& tile) {
  const int64_t tiles = conv_tiles(steps);
  if (shape.B * steps * shape.D * shape.K < kWorthThreads) threads = 1;
  parallel_for(shape.B * tiles, threads, [&](int64_t index) {
    const int64_t first = index % tiles * kConvTile;
    tile(index / tiles, first, std::min(first + kConvTile, steps), index);
  });
}

}  // namespace

template <typename Real>
void conv_step(const ConvStep<Real>& p, int threads) {
  auto* const row = XLSTM_OF_ISA(conv_step_row<Real>);
  if (p.B * p.D * p.K < kWorthThreads) threads = 1;
  parallel_for(p.B, threads, [&](int64_t b) { row(p, b); });
}

template <typename Real>
void conv_forward(const ConvForward<Real>& p, int threads) {
  auto* const tile = XLSTM_OF_ISA(conv_forward_tile<Real>);
  run(p.shape, p.shape.S, threads, [&](int64_t b, int64_t first, int64_t end, int64_t) { tile(p, b, first, end); });
}

template <typename Real>
void conv_backward(const ConvBackward<Real>& p, int threads) {
  auto* const tile = XLSTM_OF_ISA(conv_backward_tile<Real>);
  const int64_t size = (p.shape.K + 1) * p.shape.D;
  run(p.shape, p.shape.padded(), threads,
      [&](int64_t b, int64_t first, int64_t end, int64_t index) { tile(p, b, first, end, p.sums + index * size); });
}

template void conv_step(const ConvStep<float>&, int);
template void conv_step(const ConvStep<double>&, int);
template void conv_forward(const ConvForward<float>&, int);
template void conv_forward(const ConvForward<double>&, int);
template void conv_backward(const ConvBackward<float>&, int);
template void conv_backward(const ConvBackward<double>&, int);

}  // namespace xlstm::cpu
