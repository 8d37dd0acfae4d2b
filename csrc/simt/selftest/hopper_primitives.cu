// hopper_primitives.cu - one test kernel per function of csrc/device that needs sm_90, or sm_90a for wgmma. On other
// architectures the kernels are empty; the tests skip them there.
#include "device/barrier.cuh"
#include "device/cluster.cuh"
#include "device/hopper/bulk.cuh"
#include "device/hopper/wgmma.cuh"
#include "device/matrix.cuh"
#include "device/mbarrier.cuh"
#include "simt/selftest/primitives.h"

namespace xlstm::selftest {
namespace {

template <int Matrices, bool Transposed>
__global__ void stmatrix([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, int) {  // the rows, as stored
#if XLSTM_DEVICE_ARCH >= 900
  auto* rows = device::dynamic_shared<uint4>();
  const int lane = threadIdx.x;
  uint32_t r[Matrices];
  for (int m = 0; m < Matrices; ++m) r[m] = in[lane * Matrices + m];
  uint4* row = rows + 3 * (lane % (8 * Matrices));
  if constexpr (Matrices == 1)
    device::stmatrix_x1<Transposed>(row, r);
  else if constexpr (Matrices == 2)
    device::stmatrix_x2<Transposed>(row, r);
  else
    device::stmatrix_x4<Transposed>(row, r);
  __syncwarp();
  if (lane < 8 * Matrices) reinterpret_cast<uint4*>(out)[lane] = rows[3 * lane];
#endif
}

// Each block reads its right neighbour's shared memory; out: rank, size, then the neighbour's words.
__global__ void cluster([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, int) {
#if XLSTM_DEVICE_ARCH >= 900
  XLSTM_SHARED(words, uint32_t[32]);
  const unsigned rank = device::cluster_rank(), size = device::cluster_size();
  uint32_t* mine = out + blockIdx.x * 34;
  words[threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x];
  device::cluster_sync();
  mine[2 + threadIdx.x] = device::map_shared_rank(&words[0], (rank + 1) % size)[threadIdx.x];
  if (threadIdx.x == 0) mine[0] = rank, mine[1] = size;
  device::cluster_sync();  // nobody exits while others read
#endif
}

// Warp 0 fills two slots, warp 1 adds them up, over full and empty mbarriers. in: n x 32 words; out: 32 sums.
__global__ void mbarrier_ring([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, [[maybe_unused]] int n) {
#if XLSTM_DEVICE_ARCH >= 900
  struct Ring {
    uint32_t slot[2][32];
    uint64_t full[2], empty[2];
  };
  XLSTM_SHARED(ring, Ring);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0)
    for (int s = 0; s < 2; ++s) device::mbarrier_init(&ring.full[s], 32), device::mbarrier_init(&ring.empty[s], 32);
  __syncthreads();
  uint32_t sum = 0;
  for (int i = 0; i < n; ++i) {
    const int s = i % 2, round = i / 2 % 2;
    if (warp == 0) {
      device::mbarrier_wait(&ring.empty[s], round ^ 1);
      ring.slot[s][lane] = in[i * 32 + lane];
      device::mbarrier_arrive(&ring.full[s]);
    } else {
      device::mbarrier_wait(&ring.full[s], round);
      sum += ring.slot[s][31 - lane];
      device::mbarrier_arrive(&ring.empty[s]);
    }
  }
  if (warp == 1) out[lane] = sum;
#endif
}

// Every block sends 4 words by 4-byte and 4 x 4 by 16-byte st.async to its right neighbour, for n rounds; the receiver hands
// the buffer back by a remote arrival. in: per block n x 20 words; out: per block the 20 sums of what it received.
__global__ void store_async_ring([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, [[maybe_unused]] int n) {
#if XLSTM_DEVICE_ARCH >= 900
  struct Mailbox {
    uint4 vectors[4];
    uint32_t words[4];
    uint64_t full, empty;
  };
  XLSTM_SHARED(mailbox, Mailbox);
  constexpr unsigned kBytes = 4 * 16 + 4 * 4;
  const unsigned rank = device::cluster_rank(), size = device::cluster_size(), right = (rank + 1) % size,
                 left = (rank + size - 1) % size;
  const int t = threadIdx.x;
  if (t == 0) {
    device::mbarrier_init(&mailbox.full, 1);
    device::mbarrier_init(&mailbox.empty, 1);
    device::mbarrier_fence_init();
  }
  device::cluster_sync();
  uint32_t sum = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t* source = in + (blockIdx.x * n + i) * 20;
    if (t == 0) device::mbarrier_arrive_expect_bytes(&mailbox.full, kBytes);
    if (i > 0) device::mbarrier_wait_cluster(&mailbox.empty, (i - 1) % 2);
    if (t < 4) {
      const uint4 vector = make_uint4(source[4 * t], source[4 * t + 1], source[4 * t + 2], source[4 * t + 3]);
      device::store_async(&mailbox.vectors[t], vector, &mailbox.full, right);
      device::store_async(&mailbox.words[t], source[16 + t], &mailbox.full, right);
    }
    device::mbarrier_wait_cluster(&mailbox.full, i % 2);
    if (t < 20) sum += t < 16 ? reinterpret_cast<const uint32_t*>(mailbox.vectors)[t] : mailbox.words[t - 16];
    __syncwarp();
    if (t == 0) device::mbarrier_remote_arrive(&mailbox.empty, left);
  }
  if (t < 20) out[blockIdx.x * 20 + t] = sum;
  device::cluster_sync();
#endif
}

__global__ void bulk_load([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out,
                          [[maybe_unused]] int n) {  // n words
#if XLSTM_DEVICE_ARCH >= 900
  auto* words = device::dynamic_shared<uint32_t>();
  XLSTM_SHARED(arrived, uint64_t[1]);
  if (threadIdx.x == 0) {
    device::mbarrier_init(arrived, 1);
    device::mbarrier_fence_init();
    device::mbarrier_arrive_expect_bytes(arrived, unsigned(n) * 4);
    device::bulk_load(words, in, unsigned(n) * 4, arrived);
  }
  __syncthreads();
  device::mbarrier_wait(arrived, 0);
  for (int x = threadIdx.x; x < n; x += blockDim.x) out[x] = words[n - 1 - x];
#endif
}

// d (64x64) = a (64x16) b (16x64), bf16, both in shared memory without swizzle, K-major. in: a then b transposed (64x16).
__global__ void __launch_bounds__(128) wgmma_shared([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, int) {
#if XLSTM_HAS_WGMMA
  auto* a = device::dynamic_shared<__nv_bfloat16>();
  auto* b = a + 64 * 16;
  const auto* source = reinterpret_cast<const __nv_bfloat16*>(in);
  const int t = threadIdx.x;
  for (int x = t; x < 64 * 16; x += 128) {  // 8x8 cores: 128 bytes apart along K, 256 along M or N
    const int r = x / 16, c = x % 16, at = r / 8 * 128 + c / 8 * 64 + r % 8 * 8 + c % 8;
    a[at] = source[x];
    b[at] = source[64 * 16 + x];
  }
  device::fence_proxy_async();
  __syncthreads();
  float d[32];
  for (float& x : d) x = 0.0f;
  device::wgmma_fence();
  device::wgmma_m64n64k16_bf16(d, device::matrix_descriptor(a, 128, 256, 0), device::matrix_descriptor(b, 128, 256, 0));
  device::wgmma_commit();
  device::wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + t % 4 * 2 + i % 2;
    out[row * 64 + column] = __float_as_uint(d[i]);
  }
#endif
}
// d (64x32) = a (64x16, registers) b (16x32). in: a, then b transposed (32x16).
__global__ void __launch_bounds__(128) wgmma_registers([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out, int) {
#if XLSTM_HAS_WGMMA
  auto* b = device::dynamic_shared<__nv_bfloat16>();
  const auto* source = reinterpret_cast<const __nv_bfloat16*>(in);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  for (int x = t; x < 32 * 16; x += 128) {
    const int r = x / 16, c = x % 16;
    b[r / 8 * 128 + c / 8 * 64 + r % 8 * 8 + c % 8] = source[64 * 16 + x];
  }
  device::fence_proxy_async();
  __syncthreads();
  uint32_t a[4];
  for (int r = 0; r < 4; ++r) a[r] = in[((warp * 16 + lane / 4 + 8 * (r % 2)) * 16 + lane % 4 * 2 + 8 * (r / 2)) / 2];
  float d[16];
  for (float& x : d) x = 0.0f;
  device::wgmma_fence();
  device::wgmma_m64n32k16_bf16(d, a, device::matrix_descriptor(b, 128, 256, 0));
  device::wgmma_commit();
  device::wgmma_wait<0>();
  for (int i = 0; i < 16; ++i)
    out[(warp * 16 + lane / 4 + 8 * (i / 2 % 2)) * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2] = __float_as_uint(d[i]);
#endif
}

const Register primitives{
    {"stmatrix_x1", stmatrix<1, false>, 1, 32, 1, 1536, false},
    {"stmatrix_x2", stmatrix<2, false>, 1, 32, 1, 1536, false},
    {"stmatrix_x4", stmatrix<4, false>, 1, 32, 1, 1536, false},
    {"stmatrix_x1_trans", stmatrix<1, true>, 1, 32, 1, 1536, false},
    {"stmatrix_x2_trans", stmatrix<2, true>, 1, 32, 1, 1536, false},
    {"stmatrix_x4_trans", stmatrix<4, true>, 1, 32, 1, 1536, false},
    {"cluster", cluster, 8, 32, 4, 0, false},
    {"mbarrier_ring", mbarrier_ring, 1, 64, 1, 0, false},
    {"store_async_ring", store_async_ring, 4, 32, 4, 0, false},
    {"bulk_load", bulk_load, 1, 64, 1, 4096, false},
    {"wgmma_shared", wgmma_shared, 1, 128, 1, 4096, false},
    {"wgmma_registers", wgmma_registers, 1, 128, 1, 1024, false},
};

}  // namespace
}  // namespace xlstm::selftest
