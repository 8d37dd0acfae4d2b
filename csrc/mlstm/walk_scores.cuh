// walk_scores.cuh - P of one chunk in 16 bits, and for H its row sums in float32.
//
//   P_tj = (A_t.B_j + delta_t) r_t exp(row_t + column_j)       t the row that reads, j <= t the one that writes (records.h)
//
// Jobs of 16 x 8 PN tiles inside the triangle are dealt to the warps. The zeros of P are selected, not multiplied: a NaN of A or
// B stays in its row or column.
#pragma once
#include "device/math.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/walk_place.cuh"

namespace xlstm::mlstm {

constexpr float kLog2E = 1.4426950408889634f;

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
    for (int k0 = 0; k0 < C; k0 += 64)
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
    if constexpr (PN == 1)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[0][e] += acc[1][e];
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < PN; ++i) {
      const int j = (n0 + i) * 8 + 2 * quad;
      const float2 high = device::load_word<float2>(record + W::kColumnHigh + j),
                   low = device::load_word<float2>(record + W::kColumnLow + j);
      float2 r = make_float2(at.p.scale, at.p.scale), delta = make_float2(0.0f, 0.0f), start = make_float2(0.0f, 0.0f);
      if (REVERSE) {
        r = device::load_word<float2>(record + R::kR + j);
        start = device::load_word<float2>(record + R::kStart + j);
        if (DELTA) delta = device::load_word<float2>(record + R::kDelta + j);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = m * 16 + group + h * 8;
        const float row_high = record[W::kRowHigh + t], row_low = record[W::kRowLow + t];
        if (!REVERSE) {
          start = make_float2(record[R::kStart + t], record[R::kStart + t]);
          if (!NORMALISES) r = make_float2(record[R::kR + t], record[R::kR + t]);
          if (DELTA) delta = make_float2(record[R::kDelta + t], record[R::kDelta + t]);
        }
        const bool seen0 = REVERSE ? j >= t && float(t) >= start.x : j <= t && float(j) >= start.x;
        const bool seen1 = REVERSE ? j + 1 >= t && float(t) >= start.y : j + 1 <= t && float(j + 1) >= start.y;
        const float x0 = DELTA ? acc[i][2 * h] + delta.x : acc[i][2 * h],
                    x1 = DELTA ? acc[i][2 * h + 1] + delta.y : acc[i][2 * h + 1];
        const float p0 = seen0 ? x0 * (r.x * device::exp2_approx(((row_high + high.x) + (row_low + low.x)) * kLog2E)) : 0.0f;
        const float p1 = seen1 ? x1 * (r.y * device::exp2_approx(((row_high + high.y) + (row_low + low.y)) * kLog2E)) : 0.0f;
        if (NORMALISES) sum[h] += p0 + p1;
        *reinterpret_cast<uint32_t*>(at.smem + W::Shared::P + swizzled<L>(t, n0 + i) + 4 * quad) = device::pack<Element>(p0, p1);
      }
    }
    if constexpr (NORMALISES)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 1);
        sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 2);
        if (quad == 0) at.row_sums()[(T::WARPS + n0 / PN) * L + m * 16 + group + h * 8] = sum[h];
      }
  }
}

}  // namespace xlstm::mlstm
