// scores.cuh - P of one chunk in 16 bits, and for H its row sums in float32.
//
//   forward   P_tj = (A_t.B_j + delta_t) r_t 2^(row_t + column_j)        t the step that reads, j <= t the one that writes;
//   reverse   P_tj = (A_j.B_t + delta_t) r_t 2^(row_t + column_j)        exponents: gates/records.h
//
// A row of this file is a step of A and O, a column one of B and X: forward (row, column) is (t, j), in reverse (j, t).
// Jobs inside the triangle (config.h) are dealt to the warps. The zeros of P are selected, not multiplied: a NaN of A or B stays
// in its row or column.
#pragma once
#include "device/math.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/walk/place.cuh"

namespace xlstm::mlstm {

template <class Walk>
XLSTM_DEVICE void write_scores(const WalkPlace<Walk>& place, const StagedChunk& chunk) {
  using Tile = typename Walk::Tile;
  using Fields = typename Walk::Fields;
  using Element = typename Walk::Element;
  constexpr bool REVERSE = Walk::REVERSE, NORMALISES = Walk::NORMALISES, DELTA = Walk::DELTA;
  constexpr int CONTRACTED = Tile::CONTRACTED, L = Tile::L, KEY_TILES = Tile::JOB_KEY_TILES;
  const float* record = chunk.record;
#pragma unroll 1
  for (int job = place.warp; job < Tile::JOBS; job += Tile::WARPS) {
    const int job_row = Tile::JOB_ROW_TILES >> 4 * job & 15, job_key = Tile::JOB_FIRST_KEY_TILES >> 4 * job & 15;
    const int row_tile = REVERSE ? Tile::ROW_TILES - 1 - job_row : job_row;
    const int first_key_tile = REVERSE ? Tile::KEY_TILES - KEY_TILES - job_key : job_key;
    const int width = min(KEY_TILES, 2 * job_row + 2 - job_key);  // tiles of the job inside the triangle
    const int a_job = chunk.a + place.a_lane + row_tile * 16 * CONTRACTED * 2;
    const int b_job = chunk.b + place.b_lane + first_key_tile * 8 * CONTRACTED * 2;
    float acc[KEY_TILES == 1 ? 2 : KEY_TILES][4] = {};
#pragma unroll 1
    for (int slab = 0; slab < CONTRACTED; slab += 64) {
#pragma unroll
      for (int k = 0; k < 64; k += 16) {
        uint32_t a[4], b[4];
        device::ldmatrix_x4(a, place.smem + moved<CONTRACTED>(a_job, k) + slab * 2);
        if constexpr (KEY_TILES == 1) {  // two sums, so that a product does not wait for the one before
          if (k % 32 == 0) device::ldmatrix_x4(b, place.smem + moved<CONTRACTED>(b_job, k) + slab * 2);
          device::mma_m16n8k16<Element>(acc[k / 16 % 2], a, {b[k / 8 % 4], b[k / 8 % 4 + 1]});
        } else {
#pragma unroll
          for (int i = 0; i < KEY_TILES; i += 2)
            if (width == KEY_TILES || (REVERSE ? i >= KEY_TILES - 2 : i == 0)) {
              device::ldmatrix_x4(b, place.smem + moved<CONTRACTED>(b_job, k) + slab * 2 + i * 8 * CONTRACTED * 2);
              device::mma_m16n8k16<Element>(acc[i], a, {b[0], b[1]});
              device::mma_m16n8k16<Element>(acc[i + 1], a, {b[2], b[3]});
            }
        }
      }
    }
    if constexpr (KEY_TILES == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[0][e] += acc[1][e];
    }
    float row_high[2], row_low[2], row_r[2], row_delta[2];
    int row_start[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_tile * 16 + device::c_coordinate(place.fragment, 2 * half).row;
      row_high[half] = record[Walk::kRowHigh + row];
      row_low[half] = record[Walk::kRowLow + row];
      row_start[half] = REVERSE ? 0 : int(record[Fields::kStart + row]);
      row_r[half] = REVERSE || NORMALISES ? place.p.scale : record[Fields::kR + row];
      row_delta[half] = REVERSE || !DELTA ? 0.0f : record[Fields::kDelta + row];
    }
    const auto seen = [&](int column, int row, int half,
                          float start) {  // what writes is not after what reads, nor before a reset
      if (REVERSE) return column >= row && float(row) >= start;
      return unsigned(row - column) <= unsigned(row - row_start[half]);
    };
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < KEY_TILES; ++i) {
      const int key_tile = first_key_tile + i, column = key_tile * 8 + device::c_coordinate(place.fragment, 0).column;
      float2 column_r = {}, column_delta = {}, column_start = {};
      if (REVERSE) {
        column_r = device::load_word<float2>(record + Fields::kR + column);
        column_start = device::load_word<float2>(record + Fields::kStart + column);
        if (DELTA) column_delta = device::load_word<float2>(record + Fields::kDelta + column);
      }
      const float2 high = device::load_word<float2>(record + Walk::kColumnHigh + column);
      const float2 low = device::load_word<float2>(record + Walk::kColumnLow + column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_tile * 16 + device::c_coordinate(place.fragment, 2 * half).row;
        float p[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto of_column = [&](float2 pair) { return e == 0 ? pair.x : pair.y; };
          const float r = REVERSE ? of_column(column_r) : row_r[half];
          const float delta = REVERSE ? of_column(column_delta) : row_delta[half];
          const float exponent = (row_high[half] + of_column(high)) + (row_low[half] + of_column(low));
          const float product = DELTA ? acc[i][2 * half + e] + delta : acc[i][2 * half + e];
          const float value = product * (r * device::exp2_approx(exponent));
          p[e] = seen(column + e, row, half, of_column(column_start)) ? value : 0.0f;
        }
        if (NORMALISES) sum[half] += p[0] + p[1];
        place.write_score_pair(row, key_tile, device::pack<Element>(p[0], p[1]));
      }
    }
    if constexpr (NORMALISES) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const device::Coordinate in_tile = device::c_coordinate(place.fragment, 2 * half);
        sum[half] = device::sum_of_row(sum[half]);
        if (in_tile.column == 0)
          place.row_sums()[(Tile::WARPS + first_key_tile / KEY_TILES) * L + row_tile * 16 + in_tile.row] = sum[half];
      }
    }
  }
}

}  // namespace xlstm::mlstm
