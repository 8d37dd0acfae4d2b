// planted_bugs.cu - kernels with one bug each, which the executor must name. Built for the executor alone.
// Comments with a kernel's name mark the lines that a report has to show (python_tests/test_simt_races.py reads them here).
#include "device/async_copy.cuh"
#include "device/barrier.cuh"
#include "device/cluster.cuh"
#include "device/convert.cuh"
#include "device/hopper/bulk.cuh"
#include "device/hopper/wgmma.cuh"
#include "device/launch.cuh"
#include "device/matrix.cuh"
#include "device/mbarrier.cuh"
#include "device/memory_order.cuh"
#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "device/wait.cuh"
#include "simt/selftest/primitives.h"

namespace xlstm::selftest {
namespace {

// ---- control: errors that stop the launch
__global__ void divergent_barrier(const uint32_t*, uint32_t*, int) {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void barrier_not_reached(const uint32_t*, uint32_t*, int) {
  if (threadIdx.x < 96) device::named_barrier_sync(3, 128);
}
__global__ void barrier_counts_differ(const uint32_t*, uint32_t*, int) {
  device::named_barrier_sync(1, threadIdx.x < 32 ? 64 : 128);
}
__global__ void overlapping_masks(const uint32_t*, uint32_t* out, int) {
  const unsigned lane = threadIdx.x % 32;
  out[threadIdx.x] = __shfl_xor_sync(lane < 16 ? 0x0001ffffu : 0xffffff00u, lane, 1);
}
__global__ void lane_exits_early(const uint32_t*, uint32_t*, int) {
  if (threadIdx.x == 5) return;
  __syncwarp();
}
__global__ void divergent_warp(const uint32_t*, uint32_t*, int) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x & 1)
    device::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  else
    __syncwarp();
}
__global__ void block_sum_in_branch(const uint32_t*, uint32_t* out, int) {
  XLSTM_SHARED(scratch, float[32]);
  if (threadIdx.x < 32)
    out[threadIdx.x] = uint32_t(device::block_sum(1.0f, scratch));
  else
    __syncthreads();
}
__global__ void misaligned_row(const uint32_t*, uint32_t* out, int) {
  auto* rows = device::dynamic_shared<__nv_bfloat16>();
  uint32_t r[4];
  device::ldmatrix_x4(r, rows + threadIdx.x * 12);
  out[threadIdx.x] = r[0];
}
__global__ void misaligned_load(const uint32_t* in, uint32_t* out, int n) {  // n words past a multiple of 16 bytes
  out[threadIdx.x] = device::load_word<uint4>(in + 4 * threadIdx.x + n).x;
}
__global__ void misaligned_load_of_two(const uint32_t* in, uint32_t* out, int n) {
  out[threadIdx.x] = device::load_word<uint2>(in + 2 * threadIdx.x + n).x;
}
__global__ void misaligned_relaxed_load(const uint32_t* in, uint32_t* out, int n) {
  out[threadIdx.x] = device::load_relaxed_vector<uint4>(in + 4 * threadIdx.x + n).x;
}
__global__ void misaligned_store(const uint32_t* in, uint32_t* out, int n) {
  device::store_word(out + 4 * threadIdx.x + n, uint4{in[0], in[1], in[2], in[3]});
}
__global__ void misaligned_copy(const uint32_t* in, uint32_t*, int n) {
  device::cp_async<16>(device::dynamic_shared<uint4>() + threadIdx.x, in + 4 * threadIdx.x + n);
  device::cp_async_commit();
  device::cp_async_wait<0>();
}
__global__ void misaligned_copy_target(const uint32_t* in, uint32_t*, int n) {
  device::cp_async<16>(device::dynamic_shared<uint32_t>() + 4 * threadIdx.x + n, in + 4 * threadIdx.x);
}
__global__ void misaligned_bulk_load(const uint32_t* in, uint32_t*, int n) {
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) device::mbarrier_init(barrier, 1);
  if (threadIdx.x == 0) device::bulk_load(device::dynamic_shared<uint4>(), in + n, 64, barrier);
}
__global__ void misaligned_bulk_target(const uint32_t* in, uint32_t*, int n) {
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) device::mbarrier_init(barrier, 1);
  if (threadIdx.x == 0) device::bulk_load(device::dynamic_shared<uint32_t>() + n, in, 64, barrier);
}
__global__ void exits_before_copy_lands(const uint32_t* in, uint32_t*, int) {
  device::cp_async<16>(device::dynamic_shared<uint4>() + threadIdx.x, in + 4 * threadIdx.x);
  device::cp_async_commit();
}
__global__ void copy_past_shared(const uint32_t* in, uint32_t*, int) {
  auto* slots = device::dynamic_shared<uint4>();
  device::cp_async<16>(slots + threadIdx.x + 1, in);
  device::cp_async_commit();
  device::cp_async_wait<0>();
}
__global__ void store_past_shared(const uint32_t*, uint32_t*, int n) { device::dynamic_shared<uint32_t>()[threadIdx.x + n] = 1; }
__global__ void spin_on_later_block(const uint32_t*, uint32_t* out, int) {
  if (blockIdx.x == 0)
    while (device::load_acquire(out) == 0) __nanosleep(1);
  else
    device::store_release(out, 1);
}
__global__ void spin_in_vain(const uint32_t*, uint32_t* out, int) {  // the bound of device::wait_until
  device::wait_until([&] { return device::load_acquire(out) == 1; });
}
__global__ void too_many_arrivals(const uint32_t*, uint32_t*, int) {
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x != 0) return;
  device::mbarrier_init(barrier, 1);
  device::mbarrier_arrive_expect_bytes(barrier, 64);
  device::mbarrier_arrive(barrier);  // the phase waits for bytes alone
}
__global__ void barrier_never_initialised(const uint32_t*, uint32_t*, int) {
  XLSTM_SHARED(barrier, uint64_t[1]);
  device::mbarrier_arrive(barrier);
}
__global__ void bytes_never_arrive(const uint32_t*, uint32_t*, int) {
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) {
    device::mbarrier_init(barrier, 1);
    device::mbarrier_arrive_expect_bytes(barrier, 64);
  }
  __syncthreads();
  device::mbarrier_wait(barrier, 0);
}
__global__ void grid_sync_without_grid(const uint32_t*, uint32_t*, int) { device::grid_sync(); }
__global__ void big_dynamic(const uint32_t*, uint32_t*, int) {}
__global__ void peer_has_exited(const uint32_t*, uint32_t* out, int) {
  XLSTM_SHARED(word, uint32_t[1]);
  if (device::cluster_rank() == 1) return;
  for (int i = 0; i < 200; ++i) __nanosleep(1);
  out[0] = device::map_shared_rank(&word[0], 1)[0];
}

// ---- data: the launch ends, with NaN where the bug is
__global__ void copy_without_wait(const uint32_t* in, uint32_t* out, int) {
  auto* slots = device::dynamic_shared<uint4>();
  device::cp_async<16>(slots + threadIdx.x, in + 4 * threadIdx.x);
  device::cp_async_commit();
  __syncthreads();
  out[threadIdx.x] = slots[threadIdx.x].x;
  device::cp_async_wait<0>();
}
__global__ void copy_without_commit(const uint32_t* in, uint32_t* out, int) {
  auto* slots = device::dynamic_shared<uint4>();
  device::cp_async<16>(slots + threadIdx.x, in + 4 * threadIdx.x);
  device::cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = slots[threadIdx.x].x;
  device::cp_async_commit();
  device::cp_async_wait<0>();
}
__global__ void uninitialised_shared(const uint32_t*, uint32_t* out, int) {
  auto* words = device::dynamic_shared<uint32_t>();
  if (threadIdx.x < 16) words[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = words[threadIdx.x];
}

// ---- races
__global__ void missing_barrier(const uint32_t* in, uint32_t* out, int) {
  XLSTM_SHARED(words, uint32_t[128]);
  words[threadIdx.x] = in[threadIdx.x];         // PARTNER missing_barrier
  out[threadIdx.x] = words[127 - threadIdx.x];  // BUG missing_barrier
}
__global__ void missing_syncwarp(const uint32_t* in, uint32_t* out, int) {
  XLSTM_SHARED(words, uint32_t[128]);
  const unsigned t = threadIdx.x;
  words[t] = in[t];                                 // PARTNER missing_syncwarp
  __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);  // halves do not wait for each other
  out[t] = words[t ^ 31];                           // BUG missing_syncwarp
}
__global__ void copy_without_barrier(const uint32_t* in, uint32_t* out, int) {  // the wait covers one's own copies only
  auto* slots = device::dynamic_shared<uint4>();
  device::cp_async<16>(slots + threadIdx.x, in + 4 * threadIdx.x);  // PARTNER copy_without_barrier
  device::cp_async_commit();
  device::cp_async_wait<0>();
  out[threadIdx.x] = slots[(threadIdx.x + 32) % 128].x;  // BUG copy_without_barrier
}
__global__ void blocks_write_one_word(const uint32_t*, uint32_t* out, int) {
  if (threadIdx.x == 0) out[0] = blockIdx.x;  // BUG blocks_write_one_word  PARTNER blocks_write_one_word
}
__global__ void relaxed_flag(const uint32_t* in, uint32_t* out, int) {  // a flag without release and acquire
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    out[1] = in[0];  // PARTNER relaxed_flag
    device::store_relaxed(&out[0], 1);
  } else {
    while (device::load_relaxed(&out[0]) != 1) __nanosleep(1);
    out[2] = out[1];  // BUG relaxed_flag
  }
}
__global__ void release_before_barrier(const uint32_t* in, uint32_t* out, int) {  // publishes only its own thread's writes
  if (blockIdx.x == 0) {
    out[1 + threadIdx.x] = in[threadIdx.x];  // PARTNER release_before_barrier
    if (threadIdx.x == 0) device::store_release(&out[0], 1);
  } else {
    if (threadIdx.x == 0)
      while (device::load_acquire(&out[0]) != 1) __nanosleep(1);
    __syncthreads();
    out[200 + threadIdx.x] = out[1 + threadIdx.x];  // BUG release_before_barrier
  }
}
__global__ void arrive_for_the_warp(const uint32_t* in, uint32_t* out, int) {  // lane 0 arrives before the others have written
  XLSTM_SHARED(words, uint32_t[32]);
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) device::mbarrier_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    words[threadIdx.x] = in[threadIdx.x];  // PARTNER arrive_for_the_warp
    if (threadIdx.x == 0) device::mbarrier_arrive(barrier);
  } else if (threadIdx.x < 64) {
    device::mbarrier_wait(barrier, 0);
    out[threadIdx.x] = words[threadIdx.x - 32];  // BUG arrive_for_the_warp
  }
}
__global__ void wait_at_block_scope(const uint32_t* in, uint32_t* out, int) {  // st.async needs acquire at cluster scope
  XLSTM_SHARED(words, uint32_t[32]);
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) {
    device::mbarrier_init(barrier, 1);
    device::mbarrier_fence_init();
    device::mbarrier_arrive_expect_bytes(barrier, 32 * 4);
  }
  device::cluster_sync();
  if (threadIdx.x < 32) {
    const unsigned peer = device::cluster_rank() ^ 1;
    device::store_async(&words[threadIdx.x], in[threadIdx.x], barrier, peer);  // PARTNER wait_at_block_scope
    device::mbarrier_wait(barrier, 0);
    out[blockIdx.x * 32 + threadIdx.x] = words[threadIdx.x];  // BUG wait_at_block_scope
  }
  device::cluster_sync();
}
// Three blocks hand each other words in two buffers. Warp o sends to block o, and each block adds up what it got, for `exchanges`
// rounds. With one counter for both buffers a block that is two rounds ahead at one receiver counts for one that is late.
template <int COUNTERS>
XLSTM_DEVICE void exchange_words(uint32_t* out) {
  constexpr int kBlocks = 3, kExchanges = 8;
  const int rank = int(blockIdx.x), to = int(threadIdx.x) / 32;
  uint32_t* counters = out;   // [owner][2]
  uint32_t* words = out + 8;  // [2][owner][sender]
  XLSTM_SHARED(sum, uint32_t[1]);
  uint32_t value = uint32_t(rank) + 1;
  for (int e = 1; e <= kExchanges; ++e) {
    if (threadIdx.x % 32 == 0) {
      words[(e % 2 * kBlocks + to) * kBlocks + rank] = value;
      device::add_release(&counters[2 * to + e % COUNTERS], 1);
    }
    if (threadIdx.x == 0) {
      const uint32_t complete = uint32_t(COUNTERS == 2 ? (e + 1) / 2 : e) * kBlocks;
      device::wait_until([&] { return int32_t(device::load_acquire(&counters[2 * rank + e % COUNTERS]) - complete) >= 0; });
      sum[0] = 0;
      for (int sender = 0; sender < kBlocks; ++sender)
        sum[0] = sum[0] * 5 + device::load_relaxed(&words[(e % 2 * kBlocks + rank) * kBlocks + sender]);
    }
    __syncthreads();
    value = sum[0];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[32 + rank] = value;
}
__global__ void one_counter_for_two_buffers(const uint32_t*, uint32_t* out, int) { exchange_words<1>(out); }
__global__ void missing_proxy_fence(const uint32_t* in, uint32_t* out, int) {
  auto* b = device::dynamic_shared<__nv_bfloat16>();
  for (int x = int(threadIdx.x); x < 512; x += 128)
    b[x] = device::from_float<__nv_bfloat16>(float(in[x]));  // PARTNER missing_proxy_fence
  __syncthreads();
  float d[16] = {};
  const uint32_t a[4] = {};
  device::wgmma_fence();
  device::wgmma_m64n32k16_bf16(d, a, device::matrix_descriptor(b, 128, 256, 0));  // BUG missing_proxy_fence
  device::wgmma_commit();
  device::wgmma_wait<0>();
  out[threadIdx.x] = uint32_t(d[0]);
}

// ---- not bugs: patterns that the race detector must not report
__global__ void clean_exchange(const uint32_t*, uint32_t* out, int) { exchange_words<2>(out); }
__global__ void clean_flags(const uint32_t* in, uint32_t* out, int) {  // a block publishes its slice, the next one reads it
  if (blockIdx.x == 0) {
    out[1 + threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) device::store_release(&out[0], 1);
  } else {
    if (threadIdx.x == 0)
      while (device::load_acquire(&out[0]) != 1) __nanosleep(1);
    __syncthreads();
    out[200 + threadIdx.x] = out[1 + threadIdx.x];
  }
}
__global__ void clean_warp_arrive(const uint32_t* in, uint32_t* out, int) {
  XLSTM_SHARED(words, uint32_t[32]);
  XLSTM_SHARED(barrier, uint64_t[1]);
  if (threadIdx.x == 0) device::mbarrier_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    words[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 0) device::mbarrier_arrive(barrier);
  } else if (threadIdx.x < 64) {
    device::mbarrier_wait(barrier, 0);
    out[threadIdx.x] = words[threadIdx.x - 32];
  }
}

// ---- traffic that the profile must count
__global__ void strided_shared(const uint32_t*, uint32_t* out, int n) {  // stride n words: n = 1, 2, 32, 33
  auto* words = device::dynamic_shared<uint32_t>();
  for (unsigned x = threadIdx.x; x < 32 * 33; x += blockDim.x) words[x] = x;
  __syncthreads();
  out[threadIdx.x] = words[threadIdx.x * unsigned(n)];
}
__global__ void strided_global(const uint32_t* in, uint32_t* out, int n) { out[threadIdx.x] = in[threadIdx.x * unsigned(n)]; }
__global__ void vector_global(const uint32_t* in, uint32_t* out, int) {
  uint32_t words[4];
  device::load_vector(words, in + 4 * threadIdx.x);
  device::store_vector(out + 4 * threadIdx.x, words);
}
__global__ void unpadded_ldmatrix(const uint32_t*, uint32_t* out, int n) {  // rows of n bytes
  auto* bytes = device::dynamic_shared<unsigned char>();
  for (unsigned x = threadIdx.x; x < 1024; x += 32) reinterpret_cast<uint32_t*>(bytes)[x] = x;
  __syncwarp();
  uint32_t r[1];
  device::ldmatrix_x1(r, bytes + threadIdx.x % 8 * unsigned(n));
  out[threadIdx.x] = r[0];
}

const Register planted_bugs{
    {"divergent_barrier", divergent_barrier, 1, 128, 1, 0, false},
    {"barrier_not_reached", barrier_not_reached, 1, 128, 1, 0, false},
    {"barrier_counts_differ", barrier_counts_differ, 1, 128, 1, 0, false},
    {"overlapping_masks", overlapping_masks, 1, 128, 1, 0, false},
    {"lane_exits_early", lane_exits_early, 1, 128, 1, 0, false},
    {"divergent_warp", divergent_warp, 1, 32, 1, 0, false},
    {"block_sum_in_branch", block_sum_in_branch, 1, 128, 1, 0, false},
    {"misaligned_row", misaligned_row, 1, 32, 1, 2048, false},
    {"misaligned_load", misaligned_load, 1, 32, 1, 0, false},
    {"misaligned_load_of_two", misaligned_load_of_two, 1, 32, 1, 0, false},
    {"misaligned_relaxed_load", misaligned_relaxed_load, 1, 32, 1, 0, false},
    {"misaligned_store", misaligned_store, 1, 32, 1, 0, false},
    {"misaligned_copy", misaligned_copy, 1, 32, 1, 1024, false},
    {"misaligned_copy_target", misaligned_copy_target, 1, 32, 1, 1024, false},
    {"misaligned_bulk_load", misaligned_bulk_load, 1, 32, 1, 1024, false},
    {"misaligned_bulk_target", misaligned_bulk_target, 1, 32, 1, 1024, false},
    {"exits_before_copy_lands", exits_before_copy_lands, 1, 32, 1, 1024, false},
    {"copy_past_shared", copy_past_shared, 1, 128, 1, 2048, false},
    {"store_past_shared", store_past_shared, 1, 128, 1, 2048, false},
    {"spin_on_later_block", spin_on_later_block, 2, 1, 1, 0, false},
    {"spin_in_vain", spin_in_vain, 2, 32, 1, 0, true},
    {"too_many_arrivals", too_many_arrivals, 1, 128, 1, 0, false},
    {"barrier_never_initialised", barrier_never_initialised, 1, 32, 1, 0, false},
    {"bytes_never_arrive", bytes_never_arrive, 1, 32, 1, 0, false},
    {"grid_sync_without_grid", grid_sync_without_grid, 1, 32, 1, 0, false},
    {"block_of_2048_threads", big_dynamic, 1, 2048, 1, 0, false},
    {"shared_100_kib", big_dynamic, 1, 32, 1, 100 << 10, false},
    {"shared_200_kib", big_dynamic, 1, 32, 1, 200 << 10, false},
    {"shared_300_kib", big_dynamic, 1, 32, 1, 300 << 10, false},
    {"cooperative_4000_blocks", big_dynamic, 8000, 1024, 1, 0, true},
    {"cluster_of_32", big_dynamic, 32, 32, 32, 0, false},
    {"peer_has_exited", peer_has_exited, 2, 32, 2, 0, false},
    {"copy_without_wait", copy_without_wait, 1, 128, 1, 2048, false},
    {"copy_without_commit", copy_without_commit, 1, 128, 1, 2048, false},
    {"uninitialised_shared", uninitialised_shared, 1, 128, 1, 2048, false},
    {"missing_barrier", missing_barrier, 1, 128, 1, 0, false},
    {"missing_syncwarp", missing_syncwarp, 1, 128, 1, 0, false},
    {"copy_without_barrier", copy_without_barrier, 1, 128, 1, 2048, false},
    {"blocks_write_one_word", blocks_write_one_word, 4, 32, 1, 0, false},
    {"relaxed_flag", relaxed_flag, 2, 32, 1, 0, true},
    {"release_before_barrier", release_before_barrier, 2, 128, 1, 0, true},
    {"arrive_for_the_warp", arrive_for_the_warp, 1, 64, 1, 0, false},
    {"wait_at_block_scope", wait_at_block_scope, 2, 64, 2, 0, false},
    {"one_counter_for_two_buffers", one_counter_for_two_buffers, 3, 96, 1, 0, true},
    {"missing_proxy_fence", missing_proxy_fence, 1, 128, 1, 1024, false},
    {"clean_exchange", clean_exchange, 3, 96, 1, 0, true},
    {"clean_flags", clean_flags, 2, 128, 1, 0, true},
    {"clean_warp_arrive", clean_warp_arrive, 1, 64, 1, 0, false},
    {"strided_shared", strided_shared, 1, 32, 1, 32 * 33 * 4, false},
    {"strided_global", strided_global, 1, 32, 1, 0, false},
    {"vector_global", vector_global, 1, 32, 1, 0, false},
    {"unpadded_ldmatrix", unpadded_ldmatrix, 1, 32, 1, 4096, false},
};

}  // namespace
}  // namespace xlstm::selftest
