// bulk.cuh - contiguous copies by the asynchronous proxy (sm_90).
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

// Counts its bytes on an mbarrier of this block.
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

// Between ordinary writes to shared memory and their reading by the asynchronous proxy (wgmma).
XLSTM_DEVICE void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  simt::fence_proxy_async();
#endif
}

}  // namespace xlstm::device
