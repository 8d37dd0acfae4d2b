// primitives.cu - one test kernel per function of csrc/device that every architecture has. python_tests/test_simt_primitives.py
// runs each against a scalar loop, under the executor and on a GPU alike.
#include "device/async_copy.cuh"
#include "device/barrier.cuh"
#include "device/convert.cuh"
#include "device/fragment.cuh"
#include "device/launch.cuh"
#include "device/math.cuh"
#include "device/matrix.cuh"
#include "device/memory_order.cuh"
#include "device/reduce.cuh"
#include "device/two_float.cuh"
#include "device/vector.cuh"
#include "device/wait.cuh"
#include "simt/selftest/primitives.h"

namespace xlstm::selftest {
namespace {

XLSTM_DEVICE float as_float(uint32_t word) { return __uint_as_float(word); }
XLSTM_DEVICE uint32_t as_word(float x) { return __float_as_uint(x); }

// ---- lanes and warps
__global__ void lanes(const uint32_t*, uint32_t* out, int) { out[threadIdx.x] = device::lane_id() | device::warp_id() << 8; }
__global__ void shuffles(const uint32_t* in, uint32_t* out, int) {
  const int lane = threadIdx.x;
  const uint32_t x = in[lane];
  out[lane] = __shfl_xor_sync(device::kAllLanes, x, 5);
  out[32 + lane] = __shfl_up_sync(device::kAllLanes, x, 3, 8);
  out[64 + lane] = __shfl_down_sync(device::kAllLanes, x, 3, 16);
  out[96 + lane] = __shfl_sync(device::kAllLanes, x, 1, 4);
}
__global__ void votes(const uint32_t* in, uint32_t* out, int) {
  const int lane = threadIdx.x;
  out[lane] = __ballot_sync(device::kAllLanes, in[lane] != 0);
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16)
    out[32 + lane] = __any_sync(half, in[lane] != 0);
  else
    out[32 + lane] = __all_sync(half, in[lane] != 0);
}
__global__ void block_votes(const uint32_t* in, uint32_t* out, int) {
  const int t = threadIdx.x, bit = in[t] != 0;
  out[t] = __syncthreads_count(bit) | __syncthreads_and(bit) << 16 | __syncthreads_or(bit) << 17;
}
__global__ void warp_reductions(const uint32_t* in, uint32_t* out, int) {
  const int t = threadIdx.x;
  const float x = as_float(in[t]);
  out[t] = as_word(device::warp_sum(x));
  out[blockDim.x + t] = as_word(device::warp_max(x));
  out[2 * blockDim.x + t] = as_word(device::warp_prefix_sum(x));
  out[3 * blockDim.x + t] = as_word(device::warp_prefix_max(x));
}
__global__ void block_reductions(const uint32_t* in, uint32_t* out, int) {
  XLSTM_SHARED(scratch, float[32]);
  const int t = threadIdx.x;
  const float x = as_float(in[t]);
  out[t] = as_word(device::block_sum(x, scratch));
  out[blockDim.x + t] = as_word(device::block_max(x, scratch));
  out[2 * blockDim.x + t] = as_word(device::block_prefix_sum(x, scratch));
}

// ---- barriers, shared memory, atomics
__global__ void shared_transpose(const uint32_t* in, uint32_t* out, int) {
  XLSTM_SHARED(tile, uint32_t[32][33]);
  for (int r = threadIdx.x / 32; r < 32; r += blockDim.x / 32) tile[r][threadIdx.x % 32] = in[r * 32 + threadIdx.x % 32];
  __syncthreads();
  for (int r = threadIdx.x / 32; r < 32; r += blockDim.x / 32) out[r * 32 + threadIdx.x % 32] = tile[threadIdx.x % 32][r];
}
enum NamedBarrier { kSlotIsFree = 1, kSlotIsFull = 2 };
__global__ void named_barriers(const uint32_t* in, uint32_t* out, int n) {  // warp 0 produces, warps 1 and 2 consume
  XLSTM_SHARED(slot, uint32_t[32]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t sum = 0;
  for (int i = 0; i < n; ++i) {
    if (warp == 0) {
      device::named_barrier_sync(kSlotIsFree, 96);
      slot[lane] = in[i * 32 + lane];
      device::named_barrier_arrive(kSlotIsFull, 96);
    } else {
      device::named_barrier_arrive(kSlotIsFree, 96);
      device::named_barrier_sync(kSlotIsFull, 96);
      sum += slot[lane] * warp;
    }
  }
  if (warp > 0) atomicAdd(&out[lane], sum);
}
__global__ void grid_barrier(const uint32_t* in, uint32_t* out, int) {  // out: one word per block, then one sum per block
  if (threadIdx.x == 0) out[blockIdx.x] = in[blockIdx.x];
  device::grid_sync();
  uint32_t sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b];
  if (threadIdx.x == 0) out[gridDim.x + blockIdx.x] = sum;
}
// Block b waits for block b-1: out[b] = out[b-1] + in[b], published by a flag; then all arrive at a counter.
__global__ void flags(const uint32_t* in, uint32_t* out, int) {
  uint32_t* flag = out + gridDim.x;
  uint32_t* counter = out + 2 * gridDim.x;
  const unsigned b = blockIdx.x;
  if (threadIdx.x == 0) {
    device::wait_until([&] { return b == 0 || device::load_acquire(&flag[b - 1]) == 1; });
    out[b] = (b > 0 ? out[b - 1] : 0) + in[b];
    device::store_release(&flag[b], 1);
    device::add_release(counter, 1);
    device::wait_until([&] { return device::load_acquire(counter) == gridDim.x; });
    device::store_relaxed(&out[2 * gridDim.x + 1 + b], out[gridDim.x - 1] + device::load_relaxed(&in[b]));
  }
}
__global__ void atomics(const uint32_t* in, uint32_t* out, int) {
  atomicAdd(&out[0], in[threadIdx.x]);
  atomicMax(&out[1], in[threadIdx.x]);
  atomicMin(&out[2], in[threadIdx.x]);
  atomicAdd(reinterpret_cast<float*>(&out[3]), 1.0f);
}

// ---- copies and vectors
template <int Bytes>
__global__ void async_copies(const uint32_t* in, uint32_t* out, int n) {  // two groups; n: source bytes of the second
  constexpr int kWords = Bytes / 4;
  auto* slots = device::dynamic_shared<uint32_t>();
  const int t = threadIdx.x, threads = blockDim.x;
  device::cp_async<Bytes>(slots + t * kWords, in + t * kWords);
  device::cp_async_commit();
  device::cp_async<Bytes>(slots + (threads + t) * kWords, in + (threads + t) * kWords, n);
  device::cp_async_commit();
  device::cp_async_wait<1>();
  __syncthreads();
  const int neighbour = (t + 1) % threads;
  for (int w = 0; w < kWords; ++w) out[t * kWords + w] = slots[neighbour * kWords + w];
  device::cp_async_wait<0>();
  __syncthreads();
  for (int w = 0; w < kWords; ++w) out[(threads + t) * kWords + w] = slots[(threads + neighbour) * kWords + w];
}
// in: 16-bit elements. Thread t moves 8 of them from element 8 t + n / 16 (misaligned unless 0), n % 16 of them valid.
__global__ void vectors(const uint32_t* in, uint32_t* out, int n) {
  const int shift = n / 16, count = n % 16;
  const auto* source = reinterpret_cast<const __half*>(in) + 8 * threadIdx.x + shift;
  auto* destination = reinterpret_cast<__half*>(out) + 8 * threadIdx.x + shift;
  __half values[8];
  device::load_vector(values, source, count);
  device::store_vector(destination, values, count);
}

// ---- matrices
template <int Matrices, bool Transposed>
__global__ void ldmatrix(const uint32_t* in, uint32_t* out, int) {  // in: Matrices 8x8 of 16 bits; row r at 16-byte slot 3 r
  auto* slots = device::dynamic_shared<uint4>();
  const int lane = threadIdx.x;
  if (lane < 8 * Matrices) slots[3 * lane] = reinterpret_cast<const uint4*>(in)[lane];
  __syncwarp();
  uint32_t r[Matrices];
  const uint4* row = slots + 3 * (lane % (8 * Matrices));
  if constexpr (Matrices == 1)
    device::ldmatrix_x1<Transposed>(r, row);
  else if constexpr (Matrices == 2)
    device::ldmatrix_x2<Transposed>(r, row);
  else
    device::ldmatrix_x4<Transposed>(r, row);
  for (int m = 0; m < Matrices; ++m) out[lane * Matrices + m] = r[m];
}
// in: a 16x16 (row-major), b 16x8, c 16x8 as float words; out: d 16x8. Fragments are filled by fragment.cuh.
template <class T>
__global__ void mma16(const uint32_t* in, uint32_t* out, int) {
  const int lane = threadIdx.x;
  float a[8], b[4], d[4];
  for (int i = 0; i < 8; ++i) a[i] = as_float(in[device::a_coordinate(lane, i).row * 16 + device::a_coordinate(lane, i).column]);
  for (int i = 0; i < 4; ++i)
    b[i] = as_float(in[256 + device::b_coordinate(lane, i).row * 8 + device::b_coordinate(lane, i).column]);
  device::for_each_c(lane, [&](int i, int row, int column) { d[i] = as_float(in[384 + row * 8 + column]); });
  const uint32_t a_frag[4] = {device::pack<T>(a[0], a[1]), device::pack<T>(a[2], a[3]), device::pack<T>(a[4], a[5]),
                              device::pack<T>(a[6], a[7])};
  const uint32_t b_frag[2] = {device::pack<T>(b[0], b[1]), device::pack<T>(b[2], b[3])};
  device::mma_m16n8k16<T>(d, a_frag, b_frag);
  device::for_each_c(lane, [&](int i, int row, int column) { out[row * 8 + column] = as_word(d[i]); });
}
// The raw registers: in: lane's a (4), b (2), c (4); out: lane's d (4). The test knows the PTX tables itself.
template <int Type>
__global__ void mma_registers(const uint32_t* in, uint32_t* out, int) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = in[lane * 10 + i];
  for (int i = 0; i < 2; ++i) b[i] = in[lane * 10 + 4 + i];
  for (int i = 0; i < 4; ++i) d[i] = as_float(in[lane * 10 + 6 + i]);
  if constexpr (Type == 0)
    device::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  else if constexpr (Type == 1)
    device::mma_m16n8k16<__half>(d, a, b);
  else
    device::mma_m16n8k8_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = as_word(d[i]);
}
__global__ void fragment_coordinates(const uint32_t*, uint32_t* out, int) {  // row << 8 | column of every element
  const int lane = threadIdx.x;
  uint32_t* o = out + lane * 26;
  const auto word = [](device::Coordinate c) { return uint32_t(c.row << 8 | c.column); };
  for (int i = 0; i < 8; ++i) *o++ = word(device::a_coordinate(lane, i));
  for (int i = 0; i < 4; ++i) *o++ = word(device::b_coordinate(lane, i));
  for (int i = 0; i < 4; ++i) *o++ = word(device::c_coordinate(lane, i));
  for (int i = 0; i < 4; ++i) *o++ = word(device::a_tf32_coordinate(lane, i));
  for (int i = 0; i < 2; ++i) *o++ = word(device::b_tf32_coordinate(lane, i));
  *o++ = word(device::a_ldmatrix_row(lane));
  *o++ = word(device::b_ldmatrix_row(lane));
  *o++ = word(device::b_ldmatrix_trans_row(lane));
  *o++ = lane;
}
// d = a b through shared memory and ldmatrix alone. in: a 16x16, then b 16x16 (n = 0) or its transpose (n = 1), 16-bit words.
__global__ void ldmatrix_product(const uint32_t* in, uint32_t* out, int n) {
  constexpr int kRow = 24;  // 16 elements padded to an odd number of 16-byte units
  auto* a_smem = device::dynamic_shared<__nv_bfloat16>();
  auto* b_smem = a_smem + 16 * kRow;
  const auto* source = reinterpret_cast<const __nv_bfloat16*>(in);
  const int lane = threadIdx.x;
  for (int x = lane; x < 256; x += 32) {
    a_smem[x / 16 * kRow + x % 16] = source[x];
    b_smem[x / 16 * kRow + x % 16] = source[256 + x];
  }
  __syncwarp();
  uint32_t a[4], b[4];
  const auto at = [&](__nv_bfloat16* tile, device::Coordinate c) { return tile + c.row * kRow + c.column; };
  device::ldmatrix_x4(a, at(a_smem, device::a_ldmatrix_row(lane)));
  if (n == 0)
    device::ldmatrix_x4<device::kTransposed>(b, at(b_smem, device::b_ldmatrix_trans_row(lane)));
  else
    device::ldmatrix_x4(b, at(b_smem, device::b_ldmatrix_row(lane)));
  for (int half = 0; half < 2; ++half) {
    float d[4] = {};
    const uint32_t b_frag[2] = {b[2 * half], b[2 * half + 1]};
    device::mma_m16n8k16<__nv_bfloat16>(d, a, b_frag);
    device::for_each_c(lane, [&](int i, int row, int column) { out[row * 16 + half * 8 + column] = as_word(d[i]); });
  }
}

// ---- arithmetic
__global__ void approximations(const uint32_t* in, uint32_t* out, int) {
  const int t = threadIdx.x, threads = blockDim.x;
  const float x = as_float(in[t]);
  out[t] = as_word(device::exp2_approx(x));
  out[threads + t] = as_word(device::log2_approx(fabsf(x)));
  out[2 * threads + t] = as_word(device::rcp_approx(x));
  out[3 * threads + t] = device::to_tf32(x);
}
__global__ void conversions(const uint32_t* in, uint32_t* out, int) {
  const int t = threadIdx.x, threads = blockDim.x;
  const float x = as_float(in[t]);
  out[t] = device::pack<__nv_bfloat16>(x, -x);
  out[threads + t] = device::pack<__half>(x, -x);
  out[2 * threads + t] = as_word(device::to_float(device::from_float<__nv_bfloat16>(x)));
  out[3 * threads + t] = as_word(device::to_float(device::from_float<__half>(x)));
}
__global__ void two_float_sum(const uint32_t* in, uint32_t* out, int n) {  // each thread its own n numbers
  device::TwoFloat sum{0.0f, 0.0f};
  for (int j = 0; j < n; ++j) sum = sum + as_float(in[threadIdx.x * n + j]);
  const device::TwoFloat rest = sum - device::TwoFloat{as_float(in[threadIdx.x * n]), 0.0f};
  out[4 * threadIdx.x] = as_word(sum.high);
  out[4 * threadIdx.x + 1] = as_word(sum.low);
  out[4 * threadIdx.x + 2] = as_word(rest.high);
  out[4 * threadIdx.x + 3] = as_word(rest.low);
}

const Register primitives{
    {"lanes", lanes, 1, 96, 1, 0, false},
    {"shuffles", shuffles, 1, 32, 1, 0, false},
    {"votes", votes, 1, 32, 1, 0, false},
    {"block_votes", block_votes, 1, 128, 1, 0, false},
    {"warp_reductions", warp_reductions, 1, 128, 1, 0, false},
    {"block_reductions", block_reductions, 1, 256, 1, 0, false},
    {"shared_transpose", shared_transpose, 1, 256, 1, 0, false},
    {"named_barriers", named_barriers, 1, 96, 1, 0, false},
    {"grid_barrier", grid_barrier, 16, 64, 1, 0, true},
    {"flags", flags, 8, 32, 1, 0, true},
    {"atomics", atomics, 1, 128, 1, 0, false},
    {"cp_async_4", async_copies<4>, 1, 64, 1, 2 * 64 * 4, false},
    {"cp_async_8", async_copies<8>, 1, 64, 1, 2 * 64 * 8, false},
    {"cp_async_16", async_copies<16>, 1, 64, 1, 2 * 64 * 16, false},
    {"vectors", vectors, 1, 32, 1, 0, false},
    {"ldmatrix_x1", ldmatrix<1, false>, 1, 32, 1, 1536, false},
    {"ldmatrix_x2", ldmatrix<2, false>, 1, 32, 1, 1536, false},
    {"ldmatrix_x4", ldmatrix<4, false>, 1, 32, 1, 1536, false},
    {"ldmatrix_x1_trans", ldmatrix<1, true>, 1, 32, 1, 1536, false},
    {"ldmatrix_x2_trans", ldmatrix<2, true>, 1, 32, 1, 1536, false},
    {"ldmatrix_x4_trans", ldmatrix<4, true>, 1, 32, 1, 1536, false},
    {"mma_bf16", mma16<__nv_bfloat16>, 1, 32, 1, 0, false},
    {"mma_f16", mma16<__half>, 1, 32, 1, 0, false},
    {"mma_registers_bf16", mma_registers<0>, 1, 32, 1, 0, false},
    {"mma_registers_f16", mma_registers<1>, 1, 32, 1, 0, false},
    {"mma_registers_tf32", mma_registers<2>, 1, 32, 1, 0, false},
    {"fragment_coordinates", fragment_coordinates, 1, 32, 1, 0, false},
    {"ldmatrix_product", ldmatrix_product, 1, 32, 1, 1536, false},
    {"approximations", approximations, 1, 128, 1, 0, false},
    {"conversions", conversions, 1, 128, 1, 0, false},
    {"two_float_sum", two_float_sum, 1, 32, 1, 0, false},
};

}  // namespace
}  // namespace xlstm::selftest
