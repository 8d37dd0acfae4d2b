// split/geometry.cuh - who computes what when the units of one head are split over blocks (cluster and grid kernels).
//
// A group is one head and kSplitRows rows of the batch. Its `blocks` blocks own UNITS units each, all four gates of them: the
// rows R[gate][unit][.] stay on chip for the whole launch, the c, n, m of these units in the registers of one thread per cell.
#pragma once
#include <stdexcept>
#include <string>

#include "device/kernel.cuh"
#include "device/vector.cuh"
#include "slstm/kernels.h"
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

// dh of two rows of one unit: the parts of all blocks, added in the order of the ranks. load(rank) is a part; as many are
// requested at once as the loop is unrolled.
template <int UNROLL, class Load>
XLSTM_DEVICE float2 sum_of_parts(int blocks, Load&& load) {
  float2 sum{0.0f, 0.0f};
#pragma unroll UNROLL
  for (int rank = 0; rank < blocks; ++rank) {
    const float2 part = load(rank);
    sum.x += part.x;
    sum.y += part.y;
  }
  return sum;
}

inline void check_head_dim(const char* name, int64_t DH) {
  if (DH % 8 || DH < 8)
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(DH) + " is not a positive multiple of 8");
}

// bias[unit] = {i, f, z, o} of the block's units, there after the next barrier.
template <int UNITS>
XLSTM_DEVICE void load_bias(float4* bias, const KernelForward& p, const SplitPlace& place) {
  const int local = int(threadIdx.x), unit = place.rank * UNITS + local;
  if (local >= UNITS) return;
  float values[4] = {};
#pragma unroll
  for (int gate = 0; gate < 4; ++gate)
    if (p.b && unit < p.shape.DH) values[gate] = p.b[(gate * p.shape.NH + place.head) * p.shape.DH + unit];
  device::store_vector(reinterpret_cast<float*>(bias + local), values);
}

}  // namespace xlstm::slstm
