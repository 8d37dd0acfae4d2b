// sequence_rows.cuh - where the steps of one row are: a row of the batch, or with cu_seqlens a piece of the only one.
#pragma once
#include <stdexcept>

#include "device/kernel.cuh"
#include "slstm/kernels.h"

namespace xlstm::slstm {

struct SequenceRow {
  int64_t batch, first;  // step t of the row is step first + t of tensor row `batch`
  int length;            // 0 for a row that does not exist
};

// Borders outside 0 .. S, or in falling order, count as the nearest that are not, as in the mLSTM: nothing outside is touched.
XLSTM_DEVICE SequenceRow sequence_row(const Shape& shape, int64_t row) {
  if (row >= shape.B) return {0, 0, 0};
  if (!shape.cu_seqlens) return {row, 0, int(shape.S)};
  const int first = min(max(shape.cu_seqlens[row], 0), int(shape.S));
  return {0, first, min(max(shape.cu_seqlens[row + 1], first), int(shape.S)) - first};
}

// The longest of `count` rows from `row` on, the same in every thread.
XLSTM_DEVICE int longest(const Shape& shape, int64_t row, int count) {
  if (!shape.cu_seqlens) return int(shape.S);
  int most = 0;
  for (int i = 0; i < count; ++i) most = max(most, sequence_row(shape, row + i).length);
  return most;
}

XLSTM_DEVICE const uint8_t* reset_of_first_step(const Shape& shape, const SequenceRow& row) {
  return shape.reset.data + row.batch * shape.reset.batch + row.first * shape.reset.step;
}

// Blocks of a launch: one per head and tile of rows, at least one row.
inline unsigned tiles_of_rows(const Shape& shape) {
  const int64_t blocks = (shape.B + kTileRows - 1) / kTileRows * shape.NH;
  if (blocks > 0x7fffffff) throw std::invalid_argument("slstm: B * NH is more than one launch holds");
  return unsigned(blocks);
}

}  // namespace xlstm::slstm
