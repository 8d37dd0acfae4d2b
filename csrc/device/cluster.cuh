// cluster.cuh - thread block clusters (sm_90): rank, the cluster's barrier, and pointers into another block's shared memory.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

XLSTM_DEVICE unsigned cluster_rank() {
#ifdef __CUDACC__
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return simt::cluster_rank();
#endif
}

XLSTM_DEVICE unsigned cluster_size() {
#ifdef __CUDACC__
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return simt::cluster_size();
#endif
}

// All threads of the cluster, each warp together.
XLSTM_DEVICE void cluster_arrive(XLSTM_ONLY_SITE) {
  __syncwarp(kAllLanes XLSTM_FORWARD_SITE);  // .aligned wants the warp as one, and the lanes may have parted before
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  simt::cluster_arrive(site);
#endif
}

XLSTM_DEVICE void cluster_wait(XLSTM_ONLY_SITE) {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  simt::cluster_wait(site);
#endif
}

XLSTM_DEVICE void cluster_sync(XLSTM_ONLY_SITE) {
  device::cluster_arrive(XLSTM_FORWARD_ONLY_SITE);
  device::cluster_wait(XLSTM_FORWARD_ONLY_SITE);
}

// The same variable in the shared memory of the cluster's block `rank`. That block must not have exited.
template <class T>
XLSTM_DEVICE T* map_shared_rank(T* p, unsigned rank) {
#ifdef __CUDACC__
  T* mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(p), "r"(rank));
  return mapped;
#else
  return static_cast<T*>(simt::map_shared_rank(p, rank));
#endif
}

// Its 32-bit address, for instructions on shared::cluster.
XLSTM_DEVICE uint32_t shared_address_of_rank(const void* p, unsigned rank) {
#ifdef __CUDACC__
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_address(p)), "r"(rank));
  return mapped;
#else
  return simt::shared_address(p) | rank << 24;
#endif
}

}  // namespace xlstm::device
