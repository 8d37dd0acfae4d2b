// grid/counters.cuh - the counters by which the blocks of a grid launch wait for each other: they only grow, from zero.
#pragma once
#include "device/memory_order.cuh"
#include "slstm/kernels.h"

namespace xlstm::slstm {

constexpr int kCounterPitch = 8;  // 32 bytes: the counters of two blocks share no sector. Forward uses one, backward two.

XLSTM_DEVICE bool reached(const uint32_t* counter, uint32_t target XLSTM_SITE) {
  return int32_t(device::load_acquire(counter XLSTM_FORWARD_SITE) - target) >= 0;
}

// Enqueues the zeroing of `bytes` bytes of counters.
void zero_grid_counters(void* counters, int64_t bytes, Stream stream);

}  // namespace xlstm::slstm
