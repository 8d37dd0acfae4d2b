// walk_tile.cuh - the tile of a walk: sizes, warp grid, shared memory, the swizzle that keeps ldmatrix free of bank conflicts.
#pragma once
#include "device/async_copy.cuh"
#include "mlstm/params.h"
#include "mlstm/records.h"

namespace xlstm::mlstm {

// C: columns of A and B (contracted), BO: columns of X and O, L: steps of a chunk; heads with fewer columns are padded with zeros
// on the way in. STAGES: chunks in shared memory. WO: warps over o (the rest over c; 0 is as many as fit). ROW_PASSES: passes
// over the rows of O, each with L / ROW_PASSES rows of accumulators.
template <int C_, int BO_, int L_, int STAGES_, int THREADS_, int WO_ = 0, int ROW_PASSES_ = 1>
struct Tile {
  static constexpr int C = C_, BO = BO_, L = L_, STAGES = STAGES_, THREADS = THREADS_, ROW_PASSES = ROW_PASSES_,
                       WARPS = THREADS / 32;
  static constexpr int WO = WO_ ? WO_ : (WARPS < BO / 16 ? WARPS : BO / 16), WC = WARPS / WO;
  static constexpr int MO = BO / (16 * WO), CW = C / WC;               // 16-row tiles of S^T and columns of c of a warp
  static constexpr int MT = L / 16, MR = MT / ROW_PASSES, NT = L / 8;  // row tiles, row tiles of a pass, key tiles
  static constexpr int OT = 2 * MO;                                    // 8-column tiles of O of a warp
  static constexpr int KEPT = MR * OT / WC;                            // tiles of O a warp keeps after the sum over wc
  static constexpr int kBetterTileFrom = 1 << 30;  // bytes of shared memory from which a device gets another tile instead
  // A B^T is dealt to the warps in jobs of 16 x 8 PN inside the triangle. Nibble j of ROW, KEY: row tile and first key tile of
  // job j.
  static constexpr int PN = L == 64 ? 4 : WARPS > 4 ? 1 : 2;
  static constexpr int JOBS = L == 64 ? 6 : PN == 1 ? 6 : 3;
  static constexpr unsigned JOB_ROW = L == 64 ? 0x021233u : PN == 1 ? 0x001111u : 0x011u;
  static constexpr unsigned JOB_KEY = L == 64 ? 0x040040u : PN == 1 ? 0x103210u : 0x020u;
  static_assert(L == 64 || L == 32, "the job tables know two chunk lengths");
  static_assert(WARPS % WO == 0 && BO % (16 * WO) == 0 && CW % 16 == 0 && MT % ROW_PASSES == 0 && (MR * OT) % WC == 0,
                "warps share evenly");
  static_assert(C % 64 == 0 && BO % 32 == 0, "a row of a tile is a whole period of the swizzle");
};

// Where the sequence and head of a block begin in the results. Kept in shared memory: a walk has no registers to spare for what
// it needs once per chunk.
struct WalkResults {
  void* O;
  const void* row_dot_with;  // DQ, DK
  float* dots;               // H: dot, DQ, DK: row_dots
};

// Byte offsets into dynamic shared memory. Elements have 16 bits.
template <class T>
struct WalkShared {
  static constexpr int A_BYTES = T::L * T::C * 2, X_BYTES = T::L * T::BO * 2, RECORD_BYTES = Record<T::L>::kFloats * 4;
  static constexpr int A = 0, B = A + T::STAGES * A_BYTES, X = B + T::STAGES * A_BYTES, P = X + T::STAGES * X_BYTES;
  static constexpr int RECORD = P + T::L * T::L * 2;
  static constexpr int O_PARTS = RECORD + T::STAGES * RECORD_BYTES;                     // of the sum over wc
  static constexpr int ROW_SUMS = O_PARTS + (T::WC - 1) * T::WO * T::MR * T::OT * 512;  // H: of q.n; DQ, DK: row dots
  static constexpr int ROW_SUM_LINES = T::WARPS + T::NT / T::PN;
  static constexpr int RESULTS = ROW_SUMS + ROW_SUM_LINES * T::L * 4;
  static constexpr int BYTES = RESULTS + int(sizeof(WalkResults) + 15) / 16 * 16;
};

// Byte offset of 16-byte unit u of row r in a tile of W elements per row.
template <int W>
XLSTM_DEVICE int swizzled(int r, int u) {
  constexpr int kUnits = W / 8, kShift = kUnits >= 8 ? 0 : kUnits == 4 ? 1 : 2, kMask = kUnits >= 8 ? 7 : kUnits - 1;
  return r * W * 2 + ((u ^ ((r >> kShift) & kMask)) << 4);
}

// A swizzled offset moved by `column` elements (a multiple of 16): low bits by xor, the rest by addition.
template <int W>
XLSTM_DEVICE int moved(int offset, int column) {
  constexpr int kMask = W >= 64 ? 127 : W * 2 - 1;
  return (offset ^ (column * 2 & kMask)) + (column * 2 & ~kMask);
}

// Rows [first, first + ROWS) of a matrix whose row has `columns` elements, its columns from `column` on: ROWS x W in swizzled
// shared memory. Beyond `rows` and `columns` it is zero, and nothing is read there.
template <int W, int ROWS, int THREADS, class Element>
XLSTM_DEVICE void load_tile(unsigned char* tile, const Element* matrix, int64_t row_stride, int64_t first, int64_t rows,
                            int column, int columns) {
  constexpr int kUnits = W / 8, kRowsAtOnce = THREADS / kUnits;  // the unit of a thread does not change
  static_assert(THREADS % kUnits == 0 && (kRowsAtOnce % 8 == 0 || ROWS % kRowsAtOnce == 0), "whole passes");
  const int r = int(threadIdx.x) / kUnits, u = int(threadIdx.x) % kUnits;
  const int64_t left = column + u * 8 < columns ? rows - first - r : 0;
  const Element* source = matrix + (first + r) * row_stride + column + u * 8;
#pragma unroll
  for (int i = 0; i * kRowsAtOnce < ROWS; ++i) {
    if (ROWS % kRowsAtOnce && r + i * kRowsAtOnce >= ROWS) break;
    device::cp_async<16>(tile + swizzled<W>(r + i * kRowsAtOnce, u), source, i * kRowsAtOnce < left ? 16 : 0);
    source += kRowsAtOnce * row_stride;
  }
}

}  // namespace xlstm::mlstm
