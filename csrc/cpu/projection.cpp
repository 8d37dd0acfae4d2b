// projection.cpp - the products of projection.h, compiled once per instruction set (XLSTM_ISA names the namespace).
#include "cpu/projection.h"

#include "cpu/tile.h"

namespace xlstm::cpu {
namespace {

// Narrower than the tiles of tile.h: a panel of B has hundreds of rows, and two vectors of each stay in the first-level cache
// (docs/kernel-notes.md).
constexpr int kRows = kVectorBytes == 64 ? 8 : 6, kWidth = 2;
constexpr int64_t kDepth = 128;  // rows of a panel that add_outer takes at once, so that they stay in that cache too

// panel(Tile of WIDTH, first column) for every panel of N columns.
template <typename Real, int WIDTH = kWidth, typename Panel>
XLSTM_DEVICE void panels(int64_t N, const Panel& panel, int64_t column = 0) {
  for (; column + WIDTH * kLanes<Real> <= N; column += WIDTH * kLanes<Real>) {
    panel(std::integral_constant<int, WIDTH>(), column);
  }
  if constexpr (WIDTH > 1) panels<Real, WIDTH - 1>(N, panel, column);
}

template <typename Real>
void pack(const Real* from, int64_t step, int64_t K, int64_t N, Real* packed) {
  panels<Real>(N, [&](auto width, int64_t column) {
    Real* to = packed + column * K;
    for (int64_t k = 0; k < K; ++k) {
      for (int v = 0; v < width; ++v, to += kLanes<Real>) store(to, load(from + k * step + column + v * kLanes<Real>));
    }
  });
}

template <typename Real>
void pack_transposed(const Real* from, int64_t step, int64_t K, int64_t N, Real* packed) {
  panels<Real>(N, [&](auto width, int64_t column) {
    constexpr int64_t columns = width * kLanes<Real>;
    for (int64_t j = 0; j < columns; ++j) {
      const Real* const row = from + (column + j) * step;
      for (int64_t k = 0; k < K; ++k) packed[column * K + k * columns + j] = row[k];
    }
  });
}

template <typename Real>
void product(const Product<Real>& p) {
  panels<Real>(p.N, [&](auto width, int64_t column) {
    tiles_of_panel<Real, width, kRows>(0, p.rows, column, [&](auto tile, int64_t row, int64_t) {
      tile.template product<Order::kRows>(p.a + row * p.a_step, p.a_step, p.packed + column * p.K, width * kLanes<Real>, p.K);
      tile.write(p.out + row * p.out_step + column, p.out_step);
    });
  });
}

// The sums over k .. k + count for ROWS rows at a time and then fewer. Their numbers of A lie a token apart: they are copied
// close together first.
template <typename Real, int ROWS = kRows>
XLSTM_DEVICE void add_outer_of(const Product<Real>& p, int64_t k, int64_t count, int64_t row = 0) {
  alignas(64) Real close[kDepth * ROWS];
  for (; row + ROWS <= p.rows; row += ROWS) {
    for (int64_t i = 0; i < count; ++i) {
      for (int r = 0; r < ROWS; ++r) close[i * ROWS + r] = p.a[(k + i) * p.a_step + row + r];
    }
    panels<Real>(p.N, [&](auto width, int64_t column) {
      constexpr int64_t columns = width * kLanes<Real>;
      Real* const out = p.out + row * p.out_step + column;
      Tile<Real, ROWS, width> tile;
      tile.template product<Order::kColumns>(close, ROWS, p.packed + column * p.K + k * columns, columns, count);
      tile.each([&](int r, int v, Vector<Real>& sum) { sum += load(out + r * p.out_step + v * kLanes<Real>); });
      tile.write(out, p.out_step);
    });
  }
  if constexpr (ROWS > 1) add_outer_of<Real, fewer_rows(ROWS)>(p, k, count, row);
}
template <typename Real>
void add_outer(const Product<Real>& p) {
  for (int64_t k = 0; k < p.K; k += kDepth) add_outer_of(p, k, p.K - k < kDepth ? p.K - k : kDepth);
}

}  // namespace

namespace XLSTM_ISA {
template <typename Real>
Products<Real> products() {
  return {pack<Real>, pack_transposed<Real>, product<Real>, add_outer<Real>};
}
template Products<float> products();
template Products<double> products();
}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
