// async_copy.cuh - cp.async: global to shared memory without registers, in groups that a thread commits and waits for.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

// Copies source_bytes (0 to Bytes) and fills the rest of the Bytes (4, 8 or 16) with zeros. 16 bytes go past L1.
template <int Bytes>
XLSTM_DEVICE void cp_async(void* shared, const void* global, int source_bytes = Bytes XLSTM_SITE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef __CUDACC__
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(source_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
#else
  simt::cp_async(shared, global, Bytes, source_bytes, site);
#endif
}

XLSTM_DEVICE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::cp_async_commit();
#endif
}

// Until at most Pending of this thread's groups are in flight. Other threads' copies need a barrier on top.
template <int Pending>
XLSTM_DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  simt::cp_async_wait(Pending);
#endif
}

}  // namespace xlstm::device
