// mlstm_tile.cu - a small tensor-core kernel of the kind the executor is for; the mutants script plants its bugs here.
// mLSTM, parallel form, forward; one block of 4 warps per 64 rows, online maximum over the log gates:
//   D_ij = F_i - F_j + I_j (j <= i)   m_i = max_j D_ij   P_ij = (q_i.k_j / 8) exp(D_ij - m_i)
//   h_i = sum_j P_ij v_j / max(|sum_j P_ij|, exp(-m_i))
#include "device/async_copy.cuh"
#include "device/convert.cuh"
#include "device/fragment.cuh"
#include "device/launch.cuh"
#include "device/matrix.cuh"
#include "device/vector.cuh"
#include "simt/selftest/mlstm_tile.h"

namespace xlstm::selftest {
namespace {

using Element = __nv_bfloat16;
constexpr int D = 64, kRows = 64, kKeys = 64, kPadded = D + 8;  // padded rows: ldmatrix is free of bank conflicts

struct Shared {
  Element q[kRows][kPadded], k[2][kKeys][kPadded], v[2][kKeys][kPadded];
  float F[2][kKeys], I[2][kKeys];
};

// rows [first, first + count) of an (S, D) matrix; those past the end become zeros
XLSTM_DEVICE void load_rows(Element (*tile)[kPadded], const Element* source, int first, int count, int S) {
  constexpr int kChunks = D / 8;
  for (int x = int(threadIdx.x); x < count * kChunks; x += int(blockDim.x)) {
    const int r = x / kChunks, c = x % kChunks * 8, row = first + r;
    device::cp_async<16>(&tile[r][c], source + int64_t(row < S ? row : 0) * D + c, row < S ? 16 : 0);
  }
}

XLSTM_DEVICE void load_stage(Shared& s, int stage, const Element* k, const Element* v, const float* F, const float* I, int first,
                             int S) {
  load_rows(s.k[stage], k, first, kKeys, S);
  load_rows(s.v[stage], v, first, kKeys, S);
  for (int x = int(threadIdx.x); x < kKeys; x += int(blockDim.x)) {
    const int row = first + x < S ? first + x : 0, bytes = first + x < S ? 4 : 0;
    device::cp_async<4>(&s.F[stage][x], F + row, bytes);
    device::cp_async<4>(&s.I[stage][x], I + row, bytes);
  }
}

__global__ void __launch_bounds__(128) tile_kernel(const Element* q, const Element* k, const Element* v, const float* F,
                                                   const float* I, float* h, float* m_out, int S) {
  Shared& s = *device::dynamic_shared<Shared>();
  const int lane = int(threadIdx.x % 32), warp_row = int(threadIdx.x / 32) * 16, first_row = int(blockIdx.x) * kRows;
  const int row[2] = {first_row + warp_row + lane / 4, first_row + warp_row + lane / 4 + 8};  // of elements 0-1 and 2-3
  const int64_t head = blockIdx.y;
  q += head * S * D, k += head * S * D, v += head * S * D, h += head * S * D, F += head * S, I += head * S, m_out += head * S;

  load_rows(s.q, q, first_row, kRows, S);
  load_stage(s, 0, k, v, F, I, 0, S);
  device::cp_async_commit();

  float acc[D / 8][4] = {}, sum[2] = {0.0f, 0.0f}, m[2] = {-INFINITY, -INFINITY}, F_row[2];
  for (int r = 0; r < 2; ++r) F_row[r] = row[r] < S ? F[row[r]] : 0.0f;

  const int last_row = first_row + kRows - 1 < S ? first_row + kRows - 1 : S - 1, stages = last_row / kKeys + 1;
  for (int j = 0; j < stages; ++j) {
    const int stage = j % 2, first_key = j * kKeys;
    if (j + 1 < stages) load_stage(s, stage ^ 1, k, v, F, I, first_key + kKeys, S);
    device::cp_async_commit();
    device::cp_async_wait<1>();
    __syncthreads();

    float score[kKeys / 8][4] = {};  // 16 rows of this warp x kKeys
#pragma unroll
    for (int c = 0; c < D; c += 16) {
      uint32_t a[4];
      const device::Coordinate a_row = device::a_ldmatrix_row(lane), b_row = device::b_ldmatrix_row(lane);
      device::ldmatrix_x4(a, &s.q[warp_row + a_row.row][c + a_row.column]);
#pragma unroll
      for (int key = 0; key < kKeys; key += 16) {
        uint32_t b[4];
        device::ldmatrix_x4(b, &s.k[stage][key + b_row.row][c + b_row.column]);
        device::mma_m16n8k16<Element>(score[key / 8], a, {b[0], b[1]});
        device::mma_m16n8k16<Element>(score[key / 8 + 1], a, {b[2], b[3]});
      }
    }
    float log_weight[kKeys / 8][4], largest[2] = {m[0], m[1]};
#pragma unroll
    for (int key = 0; key < kKeys; key += 8)
      device::for_each_c(lane, [&](int i, int, int column) {
        const int r = i / 2, local = key + column;
        const bool causal = first_key + local <= row[r];
        log_weight[key / 8][i] = causal ? F_row[r] - s.F[stage][local] + s.I[stage][local] : -INFINITY;
        largest[r] = fmaxf(largest[r], log_weight[key / 8][i]);
      });
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // a row lies in four neighbouring lanes
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(device::kAllLanes, largest[r], 1));
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(device::kAllLanes, largest[r], 2));
      const float rescale = m[r] == -INFINITY ? 0.0f : expf(m[r] - largest[r]);
      m[r] = largest[r];
      sum[r] *= rescale;
#pragma unroll
      for (int d = 0; d < D / 8; ++d) acc[d][2 * r] *= rescale, acc[d][2 * r + 1] *= rescale;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] *= 0.125f * expf(log_weight[n][i] - m[i / 2]);
        sum[i / 2] += score[n][i];
      }
    }
#pragma unroll
    for (int key = 0; key < kKeys; key += 16) {  // accumulators are laid out as the next product's operand a
      const float *x = score[key / 8], *y = score[key / 8 + 1];
      const uint32_t a[4] = {device::pack<Element>(x[0], x[1]), device::pack<Element>(x[2], x[3]),
                             device::pack<Element>(y[0], y[1]), device::pack<Element>(y[2], y[3])};
      const device::Coordinate b_row = device::b_ldmatrix_trans_row(lane);
#pragma unroll
      for (int d = 0; d < D; d += 16) {
        uint32_t b[4];
        device::ldmatrix_x4<device::kTransposed>(b, &s.v[stage][key + b_row.row][d + b_row.column]);
        device::mma_m16n8k16<Element>(acc[d / 8], a, {b[0], b[1]});
        device::mma_m16n8k16<Element>(acc[d / 8 + 1], a, {b[2], b[3]});
      }
    }
    __syncthreads();  // everyone is done with this stage before it is refilled
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(device::kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(device::kAllLanes, sum[r], 2);
    if (row[r] >= S) continue;
    const float scale = 1.0f / fmaxf(fabsf(sum[r]), expf(-m[r]));
    if (lane % 4 == 0) m_out[row[r]] = m[r];
#pragma unroll
    for (int d = 0; d < D / 8; ++d) {
      const float pair[2] = {acc[d][2 * r] * scale, acc[d][2 * r + 1] * scale};
      device::store_vector(&h[int64_t(row[r]) * D + d * 8 + lane % 4 * 2], pair);
    }
  }
}

}  // namespace

void mlstm_tile(const void* q, const void* k, const void* v, const float* F, const float* I, float* h, float* m, int BH, int S,
                void* stream) {
  if (BH == 0 || S == 0) return;
  device::LaunchConfig config;
  config.grid = dim3(unsigned(S + kRows - 1) / kRows, unsigned(BH));
  config.block = dim3(128);
  config.shared_bytes = sizeof(Shared);
  config.stream = stream;
  device::launch(config, "mlstm_tile", tile_kernel, static_cast<const Element*>(q), static_cast<const Element*>(k),
                 static_cast<const Element*>(v), F, I, h, m, S);
}

}  // namespace xlstm::selftest
