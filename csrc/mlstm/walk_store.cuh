// walk_store.cuh - O from accumulators to memory: the sum over the warps of one o, the normaliser of H, the row dots of DQ and
// DK.
//
//   H        d_t = sum_j P_tj + r_t u_t q_t.n,   h_t = O_t / (max(|d_t|, exp(-m_t)) + eps)      (M3, with r_t = scale)
//   DQ, DK   q_t.dq_t, k_t.dk_t in float32, one part per block of o
#pragma once
#include "device/barrier.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/normaliser.cuh"
#include "mlstm/walk_place.cuh"

namespace xlstm::mlstm {

// H: the inverse of the denominator of row t = 32 i + lane.
template <class W>
XLSTM_DEVICE void inverse_normaliser(const WalkPlace<W>& at, const StagedChunk& chunk, float (&inverse)[W::T::L / 32]) {
  using T = typename W::T;
  constexpr int L = T::L;
  const float* row_sums = at.row_sums();
#pragma unroll
  for (int i = 0; i < L / 32; ++i) {
    const int t = i * 32 + at.lane;
    float d = 0.0f;
#pragma unroll
    for (int w = 0; w < T::WARPS; ++w) d += row_sums[w * L + t];
    d *= chunk.record[W::kReads + t];
#pragma unroll
    for (int x = 0; x < T::NT / T::PN; ++x)
      if (x * T::PN <= t / 16 * 2 + 1) d += row_sums[(T::WARPS + x) * L + t];
    inverse[i] = at.p.normalize ? normaliser_of(d, chunk.record[W::R::kDelta + t], at.p.eps).factor : 1.0f;
    const int64_t step = int64_t(chunk.k) * L + t;
    if (at.o_block == 0 && at.warp == 0 && at.real(step)) at.results().dots[step] = d;
  }
}

// DQ, DK: the row dots of a chunk that every warp has finished.
template <class W>
XLSTM_DEVICE void store_row_dots(const WalkPlace<W>& at, int k) {
  using T = typename W::T;
  for (int t = int(threadIdx.x); t < T::L; t += T::THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < T::WARPS; ++w) sum += at.row_sums()[w * T::L + t];
    const int64_t step = int64_t(k) * T::L + t;
    if (at.real(step)) at.results().dots[step] = sum;
  }
}

// With WC > 1 every warp has a part of O; afterwards warp wc has the whole of tiles [wc KEPT, (wc + 1) KEPT).
template <class W>
XLSTM_DEVICE void sum_over_wc(const WalkPlace<W>& at, float (&acc)[W::T::MR][W::T::OT][4], int pass) {
  using T = typename W::T;
  constexpr int WC = T::WC, MR = T::MR, OT = T::OT;
  float4* parts = reinterpret_cast<float4*>(at.smem + W::Shared::O_PARTS) + at.wo * (WC - 1) * MR * OT * 32 + at.lane;
  if (pass) device::named_barrier_sync(1 + at.wo, WC * 32);  // the parts of the pass before have been read
#pragma unroll
  for (int i = 0; i < MR * OT; ++i) {
    const int owner = i / T::KEPT;
    const float* x = acc[i / OT][i % OT];
    if (owner == at.wc) continue;
    const int line = (owner * (WC - 1) + (at.wc < owner ? at.wc : at.wc - 1)) * T::KEPT + i % T::KEPT;
    device::store_word(&parts[line * 32], make_float4(x[0], x[1], x[2], x[3]));
  }
  device::named_barrier_sync(1 + at.wo, WC * 32);
#pragma unroll
  for (int i = 0; i < MR * OT; ++i)
    if (i / T::KEPT == at.wc) {
#pragma unroll
      for (int other = 0; other < WC - 1; ++other) {
        const float4 v = device::load_word<float4>(&parts[((i / T::KEPT * (WC - 1) + other) * T::KEPT + i % T::KEPT) * 32]);
        float* x = acc[i / OT][i % OT];
        x[0] += v.x, x[1] += v.y, x[2] += v.z, x[3] += v.w;
      }
    }
}

template <class W>
XLSTM_DEVICE void store_rows(const WalkPlace<W>& at, const StagedChunk& chunk, float (&acc)[W::T::MR][W::T::OT][4], int pass,
                             const float* inverse) {
  using T = typename W::T;
  using Element = typename W::Element;
  constexpr int L = T::L, MR = T::MR, OT = T::OT, WC = T::WC;
  constexpr bool NORMALISES = W::NORMALISES, DELTA = W::DELTA;
  const WalkParams& p = at.p;
  const int quad = at.quad, wc = at.wc;
  Element* O = static_cast<Element*>(at.results().O);
  if constexpr (WC > 1) sum_over_wc(at, acc, pass);
  const bool odd = quad & 1;
#pragma unroll
  for (int mt = 0; mt < MR; ++mt) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = (pass * MR + mt) * 16 + at.group + h * 8;
      const int64_t step = int64_t(chunk.k) * L + t;
      const bool real = at.real(step);
      float y = 1.0f, dot = 0.0f;
      if constexpr (NORMALISES)
        y = __shfl_sync(device::kAllLanes, (pass * MR + mt) / 2 == 0 ? inverse[0] : inverse[L / 32 - 1], t & 31);
#pragma unroll
      for (int mo = 0; mo < T::MO; ++mo) {
        const float *x0 = &acc[mt][2 * mo][2 * h], *x1 = &acc[mt][2 * mo + 1][2 * h];
        const uint32_t v0 = device::pack<Element>(x0[0] * y, x0[1] * y), v1 = device::pack<Element>(x1[0] * y, x1[1] * y);
        const int i = mt * OT + 2 * mo;
        const auto times = [](uint32_t pair, float x, float y) {
          return device::low_half<Element>(pair) * x + device::high_half<Element>(pair) * y;
        };
        const Element* dot_with = nullptr;
        if constexpr (DELTA) dot_with = static_cast<const Element*>(at.results().row_dot_with) + step * p.row_dot_with.step;
        if constexpr (T::KEPT >= 2) {  // swapped with the neighbour: 8 bytes per lane, 32 bytes per row
          if (WC > 1 && i / T::KEPT != wc) continue;
          const int o = at.o_warp + mo * 16 + (quad >> 1) * 4 + odd * 8;
          const bool inside = real && o < p.o;
          const uint32_t from = __shfl_xor_sync(device::kAllLanes, odd ? v0 : v1, 1);
          if (inside) device::store_word(O + step * p.O.step + o, make_uint2(odd ? from : v0, odd ? v1 : from));
          if constexpr (DELTA) {
            const uint2 pairs = inside ? device::load_word<uint2>(dot_with + o) : make_uint2(0u, 0u);
            const uint32_t other = __shfl_xor_sync(device::kAllLanes, odd ? pairs.x : pairs.y, 1);
            dot += times(odd ? other : pairs.x, x0[0], x0[1]) + times(odd ? pairs.y : other, x1[0], x1[1]);
          }
        } else {
          const int kept = i / T::KEPT == wc         ? 0
                           : (i + 1) / T::KEPT == wc ? 1
                                                     : -1,
                    o = at.o_warp + mo * 16 + kept * 8 + 2 * quad;
          if (kept < 0 || !real || o >= p.o) continue;
          *reinterpret_cast<uint32_t*>(O + step * p.O.step + o) = kept ? v1 : v0;
          if constexpr (DELTA)
            dot += times(*reinterpret_cast<const uint32_t*>(dot_with + o), kept ? x1[0] : x0[0], kept ? x1[1] : x0[1]);
        }
      }
      if constexpr (DELTA) {
        dot += __shfl_xor_sync(device::kAllLanes, dot, 1);
        dot += __shfl_xor_sync(device::kAllLanes, dot, 2);
        if (quad == 0) at.row_sums()[at.warp * L + t] = dot;
      }
    }
  }
}

}  // namespace xlstm::mlstm
