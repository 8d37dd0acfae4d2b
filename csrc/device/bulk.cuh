// bulk.cuh - copies by the asynchronous proxy (sm_90): contiguous bulk loads, and 2-D tiles through tensor maps (TMA).
#pragma once
#include "device/kernel.cuh"

#ifdef __CUDACC__
#include <cuda.h>
#endif

namespace xlstm::device {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = simt::TensorMap;
#endif

// Loads count their bytes on an mbarrier of this block; stores are waited for in groups.
XLSTM_DEVICE void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#else
  simt::bulk_load(shared, global, bytes, barrier, site);
#endif
}

XLSTM_DEVICE void tensor_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int column, int row XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
#else
  simt::tensor_load_2d(shared, map, barrier, column, row, site);
#endif
}

XLSTM_DEVICE void tensor_store_2d(const TensorMap* map, const void* shared, int column, int row XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(column), "r"(row)
               : "memory");
#else
  simt::tensor_store_2d(map, shared, column, row, site);
#endif
}

XLSTM_DEVICE void bulk_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  simt::bulk_commit();
#endif
}

template <int Pending>
XLSTM_DEVICE void bulk_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
#else
  simt::bulk_wait(Pending);
#endif
}

// Between ordinary writes to shared memory and their reading by the asynchronous proxy (TMA store, wgmma).
XLSTM_DEVICE void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  simt::fence_proxy_async();
#endif
}

}  // namespace xlstm::device
