// reduce.cuh - sums, maxima and prefix sums over a warp or a block, always in the same order: the same input gives the same bits.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

template <class T>
XLSTM_DEVICE T warp_sum(T x XLSTM_SITE) {  // in every lane
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE);
  return x;
}

template <class T>
XLSTM_DEVICE T warp_max(T x XLSTM_SITE) {  // in every lane
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE);
    x = other > x ? other : x;
  }
  return x;
}

template <class T>
XLSTM_DEVICE T warp_prefix_sum(T x XLSTM_SITE) {  // lane l gets x_0 + ... + x_l
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE);
    if (int(lane_id()) >= offset) x += below;
  }
  return x;
}

template <class T>
XLSTM_DEVICE T warp_prefix_max(T x XLSTM_SITE) {  // lane l gets max(x_0, ..., x_l)
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE);
    if (int(lane_id()) >= offset) x = below > x ? below : x;
  }
  return x;
}

// Over a one-dimensional block of whole warps. scratch: shared memory, one T per warp; free again after the call.
template <class T>
XLSTM_DEVICE T block_sum(T x, T* scratch XLSTM_SITE) {  // in every thread
  x = warp_sum(x XLSTM_FORWARD_SITE);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  T total = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / 32); ++warp) total += scratch[warp];
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  return total;
}

template <class T>
XLSTM_DEVICE T block_max(T x, T* scratch XLSTM_SITE) {  // in every thread
  x = warp_max(x XLSTM_FORWARD_SITE);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  T largest = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / 32); ++warp) largest = scratch[warp] > largest ? scratch[warp] : largest;
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  return largest;
}

template <class T>
XLSTM_DEVICE T block_prefix_sum(T x, T* scratch XLSTM_SITE) {  // thread t gets x_0 + ... + x_t
  x = warp_prefix_sum(x XLSTM_FORWARD_SITE);
  if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = x;
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  T before = T(0);
  for (int warp = 0; warp < int(threadIdx.x / 32); ++warp) before += scratch[warp];
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  return threadIdx.x < 32 ? x : before + x;
}

}  // namespace xlstm::device
