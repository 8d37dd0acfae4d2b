// barrier.cuh - named barriers of a block, and the barrier of a cooperative grid. (__syncthreads and __syncwarp keep their
// names.)
#pragma once
#include "device/kernel.cuh"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

namespace xlstm::device {

// id 1..15 (0 is __syncthreads); threads: how many take part, arrivals included, a multiple of 32.
XLSTM_DEVICE void named_barrier_sync(int id, int threads XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  simt::named_barrier(id, threads, true, site);
#endif
}

XLSTM_DEVICE void named_barrier_arrive(int id, int threads XLSTM_SITE) {  // without waiting
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  simt::named_barrier(id, threads, false, site);
#endif
}

XLSTM_DEVICE void grid_sync(XLSTM_ONLY_SITE) {  // LaunchConfig::cooperative only
#ifdef __CUDACC__
  cooperative_groups::this_grid().sync();
#else
  simt::grid_barrier(site);
#endif
}

}  // namespace xlstm::device
