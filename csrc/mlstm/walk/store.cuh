// store.cuh - O from accumulators to memory: the sum over the warps that share its columns, the normaliser of H, the row dots of
// DQ and DK.
//
//   H        d_t = sum_j P_tj + r_t u_t q_t.n,   h_t = O_t / (max(|d_t|, exp(-m_t)) + eps)      (M3, with r_t = scale)
//   DQ, DK   q_t.dq_t, k_t.dk_t in float32, one part per block of output columns
#pragma once
#include "device/barrier.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/normaliser.cuh"
#include "mlstm/walk/place.cuh"

namespace xlstm::mlstm {

// H: the inverse of the denominator of row 32 i + lane.
template <class Walk>
XLSTM_DEVICE void inverse_normaliser(const WalkPlace<Walk>& place, const StagedChunk& chunk,
                                     float (&inverse)[Walk::Tile::L / 32]) {
  using Tile = typename Walk::Tile;
  constexpr int L = Tile::L, KEY_TILES = Tile::JOB_KEY_TILES;
  const float* row_sums = place.row_sums();
#pragma unroll
  for (int i = 0; i < L / 32; ++i) {
    const int row = i * 32 + place.lane;
    float d = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Tile::WARPS; ++warp) d += row_sums[warp * L + row];
    d *= chunk.record[Walk::kReads + row];
#pragma unroll
    for (int job = 0; job < Tile::KEY_TILES / KEY_TILES; ++job)
      if (job * KEY_TILES <= row / 16 * 2 + 1) d += row_sums[(Tile::WARPS + job) * L + row];
    inverse[i] = place.p.normalize ? normaliser_of(d, chunk.record[Walk::Fields::kDelta + row], place.p.eps).factor : 1.0f;
    const int64_t step = int64_t(chunk.index) * L + row;
    if (place.output_block == 0 && place.warp == 0 && place.real(step)) place.results().dots[step] = d;
  }
}

// DQ, DK: the row dots of a chunk that every warp has finished.
template <class Walk>
XLSTM_DEVICE void store_row_dots(const WalkPlace<Walk>& place, int chunk_index) {
  using Tile = typename Walk::Tile;
  for (int row = int(threadIdx.x); row < Tile::L; row += Tile::THREADS) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Tile::WARPS; ++warp) sum += place.row_sums()[warp * Tile::L + row];
    const int64_t step = int64_t(chunk_index) * Tile::L + row;
    if (place.real(step)) place.results().dots[step] = sum;
  }
}

// With several CONTRACTED_WARPS every warp has a part of O; afterwards it has the whole of its own KEPT_TILES tiles.
template <class Walk>
XLSTM_DEVICE void sum_over_contracted_warps(const WalkPlace<Walk>& place, typename Walk::Sums& acc, int pass) {
  using Tile = typename Walk::Tile;
  constexpr int SENDERS = Tile::CONTRACTED_WARPS - 1, OUTPUT_TILES = Tile::OUTPUT_TILES, KEPT_TILES = Tile::KEPT_TILES;
  constexpr int TILES = Tile::PASS_ROW_TILES * OUTPUT_TILES, THREADS = Tile::CONTRACTED_WARPS * 32;
  float4* parts = place.shared().output_parts + place.output_warp * SENDERS * TILES * 32 + place.lane;
  if (pass) device::named_barrier_sync(1 + place.output_warp, THREADS);  // the parts of the pass before have been read
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const int owner = i / KEPT_TILES;
    const float* x = acc[i / OUTPUT_TILES][i % OUTPUT_TILES];
    if (owner == place.contracted_warp) continue;
    const int sender = place.contracted_warp < owner ? place.contracted_warp : place.contracted_warp - 1;
    const int line = (owner * SENDERS + sender) * KEPT_TILES + i % KEPT_TILES;
    device::store_word(&parts[line * 32], make_float4(x[0], x[1], x[2], x[3]));
  }
  device::named_barrier_sync(1 + place.output_warp, THREADS);
#pragma unroll
  for (int i = 0; i < TILES; ++i)
    if (i / KEPT_TILES == place.contracted_warp) {
#pragma unroll
      for (int sender = 0; sender < SENDERS; ++sender) {
        const int line = (i / KEPT_TILES * SENDERS + sender) * KEPT_TILES + i % KEPT_TILES;
        const float4 v = device::load_word<float4>(&parts[line * 32]);
        float* x = acc[i / OUTPUT_TILES][i % OUTPUT_TILES];
        x[0] += v.x;
        x[1] += v.y;
        x[2] += v.z;
        x[3] += v.w;
      }
    }
}

template <class Walk>
XLSTM_DEVICE void store_rows(const WalkPlace<Walk>& place, const StagedChunk& chunk, typename Walk::Sums& acc, int pass,
                             const float* inverse) {
  using Tile = typename Walk::Tile;
  using Element = typename Walk::Element;
  constexpr int L = Tile::L, PASS_ROW_TILES = Tile::PASS_ROW_TILES, KEPT_TILES = Tile::KEPT_TILES;
  constexpr bool SHARED_COLUMNS = Tile::CONTRACTED_WARPS > 1, NORMALISES = Walk::NORMALISES, DELTA = Walk::DELTA;
  const WalkParams& p = place.p;
  const int quad = place.fragment.quad;
  Element* O = static_cast<Element*>(place.results().O);
  if constexpr (SHARED_COLUMNS) sum_over_contracted_warps(place, acc, pass);
  const bool odd = quad & 1;
  const auto times = [](uint32_t pair, const float* x) {
    return device::low_half<Element>(pair) * x[0] + device::high_half<Element>(pair) * x[1];
  };
#pragma unroll
  for (int i = 0; i < PASS_ROW_TILES; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row_tile = pass * PASS_ROW_TILES + i, row = row_tile * 16 + device::c_coordinate(place.fragment, 2 * half).row;
      const int64_t step = int64_t(chunk.index) * L + row;
      const bool real = place.real(step);
      float factor = 1.0f, dot = 0.0f;
      if constexpr (NORMALISES)
        factor = __shfl_sync(device::kAllLanes, row_tile / 2 == 0 ? inverse[0] : inverse[L / 32 - 1], row & 31);
#pragma unroll
      for (int tile = 0; tile < Tile::STATE_TILES; ++tile) {
        const float *x0 = &acc[i][2 * tile][2 * half], *x1 = &acc[i][2 * tile + 1][2 * half];
        const uint32_t v0 = device::pack<Element>(x0[0] * factor, x0[1] * factor);
        const uint32_t v1 = device::pack<Element>(x1[0] * factor, x1[1] * factor);
        const int first = i * Tile::OUTPUT_TILES + 2 * tile;
        const Element* dot_with = nullptr;
        if constexpr (DELTA) dot_with = static_cast<const Element*>(place.results().row_dot_with) + step * p.row_dot_with.step;
        if constexpr (KEPT_TILES >= 2) {  // swapped with the neighbour: 8 bytes per lane, 32 bytes per row
          if (SHARED_COLUMNS && first / KEPT_TILES != place.contracted_warp) continue;
          const int output = place.first_output + tile * 16 + (quad >> 1) * 4 + odd * 8;
          const bool inside = real && output < p.outputs;
          const uint32_t from = __shfl_xor_sync(device::kAllLanes, odd ? v0 : v1, 1);
          if (inside) device::store_word(O + step * p.O.step + output, make_uint2(odd ? from : v0, odd ? v1 : from));
          if constexpr (DELTA) {
            const uint2 pairs = inside ? device::load_word<uint2>(dot_with + output) : make_uint2(0u, 0u);
            const uint32_t other = __shfl_xor_sync(device::kAllLanes, odd ? pairs.x : pairs.y, 1);
            dot += times(odd ? other : pairs.x, x0) + times(odd ? pairs.y : other, x1);
          }
        } else {
          static_assert(!DELTA, "row dots are summed where a warp keeps pairs of tiles");
          const int kept = first / KEPT_TILES == place.contracted_warp         ? 0
                           : (first + 1) / KEPT_TILES == place.contracted_warp ? 1
                                                                               : -1;
          const int output = place.first_output + tile * 16 + kept * 8 + device::c_coordinate(place.fragment, 0).column;
          if (kept >= 0 && real && output < p.outputs)
            *reinterpret_cast<uint32_t*>(O + step * p.O.step + output) = kept ? v1 : v0;
        }
      }
      if constexpr (DELTA) {
        dot = device::sum_of_row(dot);
        if (quad == 0) place.row_sums()[place.warp * L + row] = dot;
      }
    }
  }
}

}  // namespace xlstm::mlstm
