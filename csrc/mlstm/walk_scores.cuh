// walk_scores.cuh - P of one chunk in 16 bits, and for H its row sums in float32.
//
//   P_tj = (A_t.B_j + delta_t) r_t 2^(row_t + column_j)        t the row that reads, j <= t the one that writes (records.h)
//
// Jobs of 16 x 8 PN tiles inside the triangle are dealt to the warps. The zeros of P are selected, not multiplied: a NaN of A or
// B stays in its row or column.
#pragma once
#include "device/math.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/walk_place.cuh"

namespace xlstm::mlstm {

template <class W>
XLSTM_DEVICE void write_scores(const WalkPlace<W>& at, const StagedChunk& chunk) {
  using T = typename W::T;
  using R = typename W::R;
  using Element = typename W::Element;
  constexpr bool REVERSE = W::REVERSE, NORMALISES = W::NORMALISES, DELTA = W::DELTA;
  constexpr int C = T::C, L = T::L, PN = T::PN;
  const int group = at.group, quad = at.quad;
  const float* record = chunk.record;
#pragma unroll 1
  for (int job = at.warp; job < T::JOBS; job += T::WARPS) {
    const int job_row = T::JOB_ROW >> 4 * job & 15, job_key = T::JOB_KEY >> 4 * job & 15;
    const int m = REVERSE ? T::MT - 1 - job_row : job_row, n0 = REVERSE ? T::NT - PN - job_key : job_key;
    const int width = min(PN, 2 * job_row + 2 - job_key);  // tiles of the job inside the triangle
    const int a_job = chunk.a + at.a_lane + m * 16 * C * 2, b_job = chunk.b + at.b_lane + n0 * 8 * C * 2;
    float acc[PN == 1 ? 2 : PN][4] = {};
#pragma unroll 1
    for (int k0 = 0; k0 < C; k0 += 64) {
#pragma unroll
      for (int kk = 0; kk < 64; kk += 16) {
        uint32_t a[4], b[4];
        device::ldmatrix_x4(a, at.smem + moved<C>(a_job, kk) + k0 * 2);
        if constexpr (PN == 1) {  // two sums, so that a product does not wait for the one before
          if (kk % 32 == 0) device::ldmatrix_x4(b, at.smem + moved<C>(b_job, kk) + k0 * 2);
          device::mma_m16n8k16<Element>(acc[kk / 16 % 2], a, {b[kk / 8 % 4], b[kk / 8 % 4 + 1]});
        } else {
#pragma unroll
          for (int i = 0; i < PN; i += 2)
            if (PN == 2 || width == PN || (REVERSE ? i >= PN - 2 : i == 0)) {
              device::ldmatrix_x4(b, at.smem + moved<C>(b_job, kk) + k0 * 2 + i * 8 * C * 2);
              device::mma_m16n8k16<Element>(acc[i], a, {b[0], b[1]});
              device::mma_m16n8k16<Element>(acc[i + 1], a, {b[2], b[3]});
            }
        }
      }
    }
    if constexpr (PN == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[0][e] += acc[1][e];
    }
    float row_high[2], row_low[2], row_r[2], row_delta[2];
    int row_start[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = m * 16 + group + h * 8;
      row_high[h] = record[W::kRowHigh + t], row_low[h] = record[W::kRowLow + t];
      row_start[h] = REVERSE ? 0 : int(record[R::kStart + t]);
      row_r[h] = REVERSE || NORMALISES ? at.p.scale : record[R::kR + t];
      row_delta[h] = REVERSE || !DELTA ? 0.0f : record[R::kDelta + t];
    }
    const auto seen = [&](int j, int t, int h, float start) {  // j is not after t, nor before the last reset
      if (REVERSE) return j >= t && float(t) >= start;
      return unsigned(t - j) <= unsigned(t - row_start[h]);
    };
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < PN; ++i) {
      const int j = (n0 + i) * 8 + 2 * quad;
      float2 column_r = {}, column_delta = {}, column_start = {};
      if (REVERSE) {
        column_r = device::load_word<float2>(record + R::kR + j);
        column_start = device::load_word<float2>(record + R::kStart + j);
        if (DELTA) column_delta = device::load_word<float2>(record + R::kDelta + j);
      }
      const float2 high = device::load_word<float2>(record + W::kColumnHigh + j),
                   low = device::load_word<float2>(record + W::kColumnLow + j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = m * 16 + group + h * 8;
        float p[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float r = !REVERSE ? row_r[h]
                          : e == 0 ? column_r.x
                                   : column_r.y,
                      delta = !REVERSE ? row_delta[h]
                              : e == 0 ? column_delta.x
                                       : column_delta.y,
                      exponent = (row_high[h] + (e == 0 ? high.x : high.y)) + (row_low[h] + (e == 0 ? low.x : low.y)),
                      x = DELTA ? acc[i][2 * h + e] + delta : acc[i][2 * h + e];
          const float value = x * (r * device::exp2_approx(exponent));
          p[e] = seen(j + e, t, h, e == 0 ? column_start.x : column_start.y) ? value : 0.0f;
        }
        if (NORMALISES) sum[h] += p[0] + p[1];
        *reinterpret_cast<uint32_t*>(at.smem + W::Shared::P + swizzled<L>(t, n0 + i) + 4 * quad) =
            device::pack<Element>(p[0], p[1]);
      }
    }
    if constexpr (NORMALISES) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 1);
        sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 2);
        if (quad == 0) at.row_sums()[(T::WARPS + n0 / PN) * L + m * 16 + group + h * 8] = sum[h];
      }
    }
  }
}

}  // namespace xlstm::mlstm
