// shared.cuh - the shared memory of a walk: what lies there, the swizzle that keeps ldmatrix free of bank conflicts, and how a
// tile gets there.
#pragma once
#include <cstddef>

#include "device/async_copy.cuh"
#include "device/fragment.cuh"
#include "mlstm/gates/records.h"
#include "mlstm/walk/config.h"

namespace xlstm::mlstm {

// Where the sequence and head of a block begin in the results. Kept in shared memory: a walk has no registers to spare for what
// it needs once per chunk.
struct WalkResults {
  void* O;
  const void* row_dot_with;  // DQ, DK
  float* dots;               // H: dot, DQ, DK: row_dots
};

// Dynamic shared memory of a block. Elements have 16 bits; their tiles are swizzled.
template <class Tile>
struct WalkShared {
  static constexpr int L = Tile::L;
  // Of the warps that share columns of O, each but one hands over its part of it.
  static constexpr int OUTPUT_PARTS =
      (Tile::CONTRACTED_WARPS - 1) * Tile::OUTPUT_WARPS * Tile::PASS_ROW_TILES * Tile::OUTPUT_TILES;

  uint16_t A[Tile::STAGES][L * Tile::CONTRACTED], B[Tile::STAGES][L * Tile::CONTRACTED];
  uint16_t X[Tile::STAGES][L * Tile::OUTPUTS];
  uint16_t P[L * L];
  float record[Tile::STAGES][Record<L>::kFloats];
  float4 output_parts[OUTPUT_PARTS ? OUTPUT_PARTS * 32 : 1];               // accumulators, one of every lane
  float row_sums[Tile::WARPS + Tile::KEY_TILES / Tile::JOB_KEY_TILES][L];  // H: of q.n, then of P; DQ, DK: row dots
  alignas(16) WalkResults results;
};

// Byte offset of 16-byte unit `unit` of a row in a tile of WIDTH elements per row.
template <int WIDTH>
XLSTM_DEVICE int swizzled(int row, int unit) {
  constexpr int kUnits = WIDTH / 8, kShift = kUnits >= 8 ? 0 : kUnits == 4 ? 1 : 2, kMask = kUnits >= 8 ? 7 : kUnits - 1;
  return row * WIDTH * 2 + ((unit ^ ((row >> kShift) & kMask)) << 4);
}

// The same for what lane `lane` hands to ldmatrix: `at` is its row and column in a tile whose columns begin at `first_column`.
template <int WIDTH>
XLSTM_DEVICE int swizzled(device::Coordinate at, int first_column = 0) {
  return swizzled<WIDTH>(at.row, (first_column >> 3) ^ (at.column >> 3));
}

// A swizzled offset moved by `column` elements (a multiple of 16): low bits by xor, the rest by addition.
template <int WIDTH>
XLSTM_DEVICE int moved(int offset, int column) {
  constexpr int kMask = WIDTH >= 64 ? 127 : WIDTH * 2 - 1;
  return (offset ^ (column * 2 & kMask)) + (column * 2 & ~kMask);
}

// Rows [first, first + ROWS) of a matrix whose row has `columns` elements, its columns from `column` on: ROWS x WIDTH in swizzled
// shared memory. Beyond `rows` and `columns` it is zero, and nothing is read there.
template <int WIDTH, int ROWS, int THREADS, class Element>
XLSTM_DEVICE void load_tile(unsigned char* tile, const Element* matrix, int64_t row_stride, int64_t first, int64_t rows,
                            int column, int columns) {
  constexpr int kUnits = WIDTH / 8, kRowsAtOnce = THREADS / kUnits;  // the unit of a thread does not change
  static_assert(THREADS % kUnits == 0, "all threads load whole rows at once");
  static_assert(kRowsAtOnce % 8 == 0 || ROWS % kRowsAtOnce == 0, "the swizzle is that of the first row, or no pass is ragged");
  const int row = int(threadIdx.x) / kUnits, unit = int(threadIdx.x) % kUnits;
  const int64_t left = column + unit * 8 < columns ? rows - first - row : 0;
  const Element* source = matrix + (first + row) * row_stride + column + unit * 8;
#pragma unroll
  for (int i = 0; i * kRowsAtOnce < ROWS; ++i) {
    if (ROWS % kRowsAtOnce && row + i * kRowsAtOnce >= ROWS) break;
    device::cp_async<16>(tile + swizzled<WIDTH>(row + i * kRowsAtOnce, unit), source, i * kRowsAtOnce < left ? 16 : 0);
    source += kRowsAtOnce * row_stride;
  }
}

}  // namespace xlstm::mlstm
