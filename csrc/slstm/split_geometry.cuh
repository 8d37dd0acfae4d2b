// split_geometry.cuh - who computes what when the units of one head are split over blocks (cluster and grid kernels).
//
// A group is one head and kSplitRows rows of the batch. Its `blocks` blocks own UNITS units each, all four gates of them: the
// rows R[gate][unit][.] stay on chip for the whole launch, the c, n, m of these units in the registers of one thread per cell.
#pragma once
#include "device/kernel.cuh"
#include "slstm/sequence_rows.cuh"

namespace xlstm::slstm {

constexpr int kSplitRows = 8;  // the N of an mma

struct SplitPlace {
  int head, rank, blocks;
  int64_t first_row;
};

XLSTM_HOST_DEVICE constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
XLSTM_HOST_DEVICE int64_t split_groups(const Shape& shape) { return shape.NH * ((shape.B + kSplitRows - 1) / kSplitRows); }

XLSTM_DEVICE SplitPlace split_place(const Shape& shape, int64_t group, int rank, int blocks) {
  return {int(group % shape.NH), rank, blocks, group / shape.NH * kSplitRows};
}

}  // namespace xlstm::slstm
