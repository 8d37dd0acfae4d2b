// mbarrier.cuh - barriers in shared memory that count threads and bytes (sm_90), and st.async, which stores into another block
// of the cluster and counts its bytes on that block's barrier.
#pragma once
#include "device/cluster.cuh"
#include "device/kernel.cuh"
#include "device/wait.cuh"

namespace xlstm::device {

XLSTM_DEVICE void mbarrier_init(uint64_t* barrier, unsigned count XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#else
  simt::mbarrier_init(barrier, count, site);
#endif
}

// After mbarrier_init, before a cluster barrier: other blocks and the async proxy see the barrier initialised.
XLSTM_DEVICE void mbarrier_fence_init() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

XLSTM_DEVICE void mbarrier_arrive(uint64_t* barrier XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
  simt::mbarrier_arrive(barrier, 0, site);
#endif
}

// Arrives, and lets this phase wait for `bytes` more bytes of asynchronous copies.
XLSTM_DEVICE void mbarrier_arrive_expect_bytes(uint64_t* barrier, unsigned bytes XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#else
  simt::mbarrier_arrive(barrier, bytes, site);
#endif
}

// Arrives at the same barrier of the cluster's block `rank`, with release at cluster scope.
XLSTM_DEVICE void mbarrier_remote_arrive(uint64_t* barrier, unsigned rank XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(shared_address_of_rank(barrier, rank))
               : "memory");
#else
  simt::mbarrier_remote_arrive(barrier, rank, site);
#endif
}

namespace detail {
template <bool CLUSTER_SCOPE>
XLSTM_DEVICE void mbarrier_wait(uint64_t* barrier, unsigned parity XLSTM_WAIT_SITE) {
#ifdef __CUDACC__
  const uint32_t address = shared_address(barrier);
  wait_until([=] {
    uint32_t done;
    if constexpr (CLUSTER_SCOPE)
      asm volatile(
          "{\n.reg .pred done;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
    else
      asm volatile(
          "{\n.reg .pred done;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
    return done != 0;
  } XLSTM_FORWARD_WAIT_SITE);
#else
  simt::mbarrier_wait(barrier, parity, CLUSTER_SCOPE, site);
#endif
}
}  // namespace detail

// Until the phase of this parity is complete. Acquires what threads and copies of this block published.
XLSTM_DEVICE void mbarrier_wait(uint64_t* barrier, unsigned parity XLSTM_WAIT_SITE) {
  detail::mbarrier_wait<false>(barrier, parity XLSTM_FORWARD_WAIT_SITE);
}
// The same with acquire at cluster scope: needed to read what other blocks stored (st.async, remote arrivals).
XLSTM_DEVICE void mbarrier_wait_cluster(uint64_t* barrier, unsigned parity XLSTM_WAIT_SITE) {
  detail::mbarrier_wait<true>(barrier, parity XLSTM_FORWARD_WAIT_SITE);
}

// Stores 4 or 16 bytes to the same variable in block `rank` and counts them on the same barrier there, all asynchronously.
XLSTM_DEVICE void store_async(uint32_t* shared, uint32_t value, uint64_t* barrier, unsigned rank XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(shared_address_of_rank(shared, rank)),
      "r"(value), "r"(shared_address_of_rank(barrier, rank))
      : "memory");
#else
  simt::store_async(shared, &value, 4, barrier, rank, site);
#endif
}
XLSTM_DEVICE void store_async(uint4* shared, uint4 value, uint64_t* barrier, unsigned rank XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(
                   shared_address_of_rank(shared, rank)),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(shared_address_of_rank(barrier, rank))
               : "memory");
#else
  simt::store_async(shared, &value, 16, barrier, rank, site);
#endif
}

}  // namespace xlstm::device
