// reduce.cuh - sums, maxima and prefix sums over a warp or a block, always in the same order: the same input gives the same bits.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

namespace detail {

struct Sum {
  template <class T>
  XLSTM_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // a where neither is larger
  template <class T>
  XLSTM_DEVICE T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

template <class Combine, class T>
XLSTM_DEVICE T warp_reduce(T x XLSTM_SITE) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = Combine{}(x, __shfl_xor_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE));
  return x;
}

template <class Combine, class T>
XLSTM_DEVICE T warp_prefix(T x XLSTM_SITE) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T below = __shfl_up_sync(kAllLanes, x, offset, 32 XLSTM_FORWARD_SITE);
    if (int(lane_id()) >= offset) x = Combine{}(x, below);
  }
  return x;
}

template <class Combine, class T>
XLSTM_DEVICE T block_reduce(T x, T* scratch XLSTM_SITE) {
  x = warp_reduce<Combine>(x XLSTM_FORWARD_SITE);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  T all = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / 32); ++warp) all = Combine{}(all, scratch[warp]);
  __syncthreads(XLSTM_FORWARD_ONLY_SITE);
  return all;
}

}  // namespace detail

// Over a warp. Sums and maxima are in every lane; of prefixes, lane l gets those of x_0 to x_l.
template <class T>
XLSTM_DEVICE T warp_sum(T x XLSTM_SITE) {
  return detail::warp_reduce<detail::Sum>(x XLSTM_FORWARD_SITE);
}
template <class T>
XLSTM_DEVICE T warp_max(T x XLSTM_SITE) {
  return detail::warp_reduce<detail::Max>(x XLSTM_FORWARD_SITE);
}
template <class T>
XLSTM_DEVICE T warp_prefix_sum(T x XLSTM_SITE) {
  return detail::warp_prefix<detail::Sum>(x XLSTM_FORWARD_SITE);
}
template <class T>
XLSTM_DEVICE T warp_prefix_max(T x XLSTM_SITE) {
  return detail::warp_prefix<detail::Max>(x XLSTM_FORWARD_SITE);
}

// Over a one-dimensional block of whole warps. scratch: shared memory, one T per warp; free again after the call.
template <class T>
XLSTM_DEVICE T block_sum(T x, T* scratch XLSTM_SITE) {  // in every thread
  return detail::block_reduce<detail::Sum>(x, scratch XLSTM_FORWARD_SITE);
}
template <class T>
XLSTM_DEVICE T block_max(T x, T* scratch XLSTM_SITE) {  // in every thread
  return detail::block_reduce<detail::Max>(x, scratch XLSTM_FORWARD_SITE);
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
