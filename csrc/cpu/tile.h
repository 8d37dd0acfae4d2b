// tile.h - a piece of a matrix product that stays in registers, and the loops over the pieces of a matrix. Included only by files
// that are compiled once per instruction set.
#pragma once
#include "cpu/vector.h"

namespace xlstm::cpu {
namespace {

// Rows and vectors of a tile: the sums and one row of B fill the registers (measured on Zen 4, docs/kernel-notes.md).
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileWidth = 4;
#else
constexpr int kTileRows = 6, kTileWidth = 2;
#endif
template <typename Real>
constexpr int64_t kTileColumns = kTileWidth * kLanes<Real>;

enum class Order { kRows, kColumns };  // A (rows, K) lies row after row, or column after column

// Every sum runs over k in order in one accumulator, so its bits do not depend on the tile that it is in.
template <typename Real, int ROWS, int WIDTH>
struct Tile {
  Vector<Real> sum[ROWS][WIDTH] = {};

  static constexpr int rows = ROWS, width = WIDTH;

  // sum += A (ROWS, K) B (K, WIDTH vectors); numbers of A are broadcast.
  template <Order order>
  XLSTM_DEVICE void product(const Real* a, int64_t lda, const Real* b, int64_t ldb, int64_t K) {
    for (int64_t k = 0; k < K; ++k) {
      Vector<Real> row_of_b[WIDTH];
#pragma GCC unroll 8
      for (int v = 0; v < WIDTH; ++v) row_of_b[v] = load(b + k * ldb + v * kLanes<Real>);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row) {
        const Real number = order == Order::kRows ? a[row * lda + k] : a[k * lda + row];
#pragma GCC unroll 8
        for (int v = 0; v < WIDTH; ++v) sum[row][v] += number * row_of_b[v];
      }
    }
  }

  // action(row, v, sum) for every vector v of every row.
  template <typename Action>
  XLSTM_DEVICE void each(const Action& action) {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
      for (int v = 0; v < WIDTH; ++v) action(row, v, sum[row][v]);
    }
  }
  XLSTM_DEVICE void scale_rows(const Real* factor) {
    each([&](int row, int, Vector<Real>& x) { x *= factor[row]; });
  }
  XLSTM_DEVICE void write(Real* out, int64_t ldo) {
    each([&](int row, int v, Vector<Real>& x) { store(out + row * ldo + v * kLanes<Real>, x); });
  }
};

constexpr int fewer_rows(int rows) { return rows > 4 ? 4 : rows / 2; }

template <typename Real, int ROWS, int WIDTH = kTileWidth, typename Body>
XLSTM_DEVICE void tiles_of_row(int64_t row, int64_t column, int64_t columns, const Body& body) {
  for (; column + WIDTH * kLanes<Real> <= columns; column += WIDTH * kLanes<Real>) body(Tile<Real, ROWS, WIDTH>(), row, column);
  if constexpr (WIDTH > 1) tiles_of_row<Real, ROWS, WIDTH - 1>(row, column, columns, body);
}
template <typename Real, int WIDTH, int ROWS = kTileRows, typename Body>
XLSTM_DEVICE void tiles_of_panel(int64_t row, int64_t rows, int64_t column, const Body& body) {
  for (; row + ROWS <= rows; row += ROWS) body(Tile<Real, ROWS, WIDTH>(), row, column);
  if constexpr (ROWS > 1) tiles_of_panel<Real, WIDTH, fewer_rows(ROWS)>(row, rows, column, body);
}

// body(tile of zeros, first row, first column) for every tile of a matrix whose columns are whole vectors. Panels of columns are
// the outer loop, so that a panel of B stays in the first-level cache; before(first column, columns) makes it.
template <typename Real, int WIDTH = kTileWidth, typename Before, typename Body>
XLSTM_DEVICE void tiles(int64_t rows, int64_t columns, const Before& before, const Body& body, int64_t column = 0) {
  for (; column + WIDTH * kLanes<Real> <= columns; column += WIDTH * kLanes<Real>) {
    before(column, WIDTH * kLanes<Real>);
    tiles_of_panel<Real, WIDTH>(0, rows, column, body);
  }
  if constexpr (WIDTH > 1) tiles<Real, WIDTH - 1>(rows, columns, before, body, column);
}
// Only the tiles that meet column >= row; their rows are those of `tiles`.
template <typename Real, int ROWS = kTileRows, typename Body>
XLSTM_DEVICE void triangle(int64_t rows, const Body& body, int64_t row = 0) {
  const int64_t columns = whole_vectors<Real>(rows);
  for (; row + ROWS <= rows; row += ROWS) tiles_of_row<Real, ROWS>(row, row / kLanes<Real> * kLanes<Real>, columns, body);
  if constexpr (ROWS > 1) triangle<Real, fewer_rows(ROWS)>(rows, body, row);
}

// What runs along the rows of matrices; every row is whole vectors.

// out (columns, ldo) = x (rows, columns)^T, times scale[row] if given; rows are filled up with zeros to whole vectors.
template <typename Real>
XLSTM_DEVICE void transposed(const Real* x, int64_t ldx, int64_t rows, int64_t columns, Real* out, int64_t ldo,
                             const Real* scale = nullptr) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t row = 0; row < rows; row += lanes) {
    const Vector<Real> factor = scale ? load(scale + row) : Vector<Real>{} + Real(1);
    for (int64_t column = 0; column < columns; column += lanes) {
      Vector<Real> block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = row + i < rows ? load(x + (row + i) * ldx + column) : Vector<Real>{};
      transpose<Real>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(out + (column + i) * ldo + row, scale ? block[i] * factor : block[i]);
    }
  }
}

// out[row] = <x[row], y[row]>; out has room for whole vectors.
template <typename Real>
XLSTM_DEVICE void row_dots(const Real* x, int64_t ldx, const Real* y, int64_t ldy, int64_t rows, int64_t columns, Real* out) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t row = 0; row < rows; row += lanes) {
    Vector<Real> sums[lanes] = {};
    for (int i = 0; i < lanes && row + i < rows; ++i) {
      const Real *const a = x + (row + i) * ldx, *const b = y + (row + i) * ldy;
      Vector<Real> even = {}, odd = {};
      int64_t column = 0;
      for (; column + 2 * lanes <= columns; column += 2 * lanes) {
        even += load(a + column) * load(b + column);
        odd += load(a + column + lanes) * load(b + column + lanes);
      }
      if (column < columns) even += load(a + column) * load(b + column);
      sums[i] = even + odd;
    }
    store(out + row, sum_each<Real>(sums));
  }
}

// Sums along rows that a loop over tiles collects, a vector per row: sums (rows, lanes).
template <typename Real>
XLSTM_DEVICE void clear_sums(Real* sums, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) store(sums + row * kLanes<Real>, Vector<Real>{});
}
template <typename Real>
XLSTM_DEVICE void add_to_sum(Real* sums, int64_t row, Vector<Real> x) {
  store(sums + row * kLanes<Real>, load(sums + row * kLanes<Real>) + x);
}
template <typename Real>
XLSTM_DEVICE void finish_sums(const Real* sums, int64_t rows, Real* out) {
  for (int64_t row = 0; row < rows; row += kLanes<Real>) {
    Vector<Real> block[kLanes<Real>];
    for (int i = 0; i < kLanes<Real>; ++i) block[i] = row + i < rows ? load(sums + (row + i) * kLanes<Real>) : Vector<Real>{};
    store(out + row, sum_each<Real>(block));
  }
}

// out[row] = scale[row] x[row], rows close together.
template <typename Real>
XLSTM_DEVICE void scaled(const Real* x, int64_t ldx, int64_t rows, int64_t columns, const Real* scale, Real* out) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += kLanes<Real>) {
      store(out + row * columns + column, load(x + row * ldx + column) * scale[row]);
    }
  }
}

// out[column] = keep before[column] + sum_k a[k] B[k][column]; before may be null, and may be out.
template <typename Real>
XLSTM_DEVICE void row_product(const Real* a, const Real* b, int64_t ldb, int64_t K, int64_t columns, Real keep,
                              const Real* before, Real* out) {
  for (int64_t column = 0; column < columns; column += kLanes<Real>) {
    Vector<Real> sum[4] = {};
    int64_t k = 0;
    for (; k + 4 <= K; k += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += a[k + i] * load(b + (k + i) * ldb + column);
    }
    for (; k < K; ++k) sum[0] += a[k] * load(b + k * ldb + column);
    const Vector<Real> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    store(out + column, before ? keep * load(before + column) + total : total);
  }
}

constexpr auto nothing = [](int64_t, int64_t) {};

}  // namespace
}  // namespace xlstm::cpu
