// state.cuh - the state of a walk in registers: how it is loaded and stored, read by the rows of a chunk, and updated.
//
//   read     O_row = reads_row (A_row S + delta_row s)       reads: r_t u_t forward, w_j in reverse (without delta)
//   update   S <- g S + sum_column writes B^T X              s <- g s + sum_column writes delta X      n <- g n + sum_j w_j k_j
//
// Warp (output_warp, contracted_warp) owns S^T[16 STATE_TILES outputs][WARP_CONTRACTED columns of A] as float32 accumulators.
// Packed, they are operand b of A S (k: columns of A, n: outputs): elements 0, 1 for outputs 0-7, elements 2, 3 for 8-15. X^T B
// takes the registers of X in the order 0, 2, 1, 3 as operand a (m: outputs, k: keys): times the writing factor, packed again. n,
// delta and w are pairs of 16-bit numbers where they stand alone; what the low parts add is kept apart in the chunk and joined at
// its end.
#pragma once
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/walk/place.cuh"

namespace xlstm::mlstm {

template <class Walk>
struct WalkState {
  using Tile = typename Walk::Tile;
  using Fields = typename Walk::Fields;
  using Element = typename Walk::Element;
  using Place = WalkPlace<Walk>;
  static constexpr bool REVERSE = Walk::REVERSE, NORMALISES = Walk::NORMALISES, DELTA = Walk::DELTA;
  static constexpr bool TRANSPOSED = Walk::TRANSPOSED;
  static constexpr int L = Tile::L, ROW_TILES = Tile::ROW_TILES, PASS_ROW_TILES = Tile::PASS_ROW_TILES;
  static constexpr int STATE_TILES = Tile::STATE_TILES, OUTPUT_TILES = Tile::OUTPUT_TILES, OUTPUT_WARPS = Tile::OUTPUT_WARPS;
  static constexpr int WARP_CONTRACTED = Tile::WARP_CONTRACTED, PAIRS = WARP_CONTRACTED / 16;  // of 8-column tiles of S^T
  static constexpr int N_PAIRS = NORMALISES ? PAIRS / OUTPUT_WARPS : 1;                        // of n, of this warp

  float S[STATE_TILES][2 * PAIRS][4];
  // Beside S^T: s (column 0; DQ, DK) or n (row 0; H). Column 1 and row 1 take what the low parts of delta and w add.
  float s[DELTA ? STATE_TILES : 1][4] = {};
  float n[2 * N_PAIRS][4] = {};

  XLSTM_DEVICE void load(const Place& place, const float* state, const float* vector) {  // null is zero
    const WalkParams& p = place.p;
    const int64_t matrix = place.sequence_head * p.contracted * p.outputs;
#pragma unroll
    for (int tile = 0; tile < STATE_TILES; ++tile) {
#pragma unroll
      for (int i = 0; i < 2 * PAIRS; ++i) {
        if constexpr (XLSTM_DEVICE_ARCH >= 1000) __syncwarp();  // else ptxas holds all addresses at once, and spills
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int output = output_of(place, tile, half);
          const int column = place.contracted_warp * WARP_CONTRACTED + i * 8 + device::c_coordinate(place.fragment, 0).column;
          float2 v = make_float2(0.0f, 0.0f);  // two neighbours in a row of S^T
          if (state && output < p.outputs && column < p.contracted) {
            const float* from = state + matrix;
            v = TRANSPOSED
                    ? device::load_word<float2>(from + int64_t(output) * p.contracted + column)
                    : make_float2(from[column * int64_t(p.outputs) + output], from[(column + 1) * int64_t(p.outputs) + output]);
          }
          S[tile][i][2 * half] = v.x;
          S[tile][i][2 * half + 1] = v.y;
        }
      }
    }
    if (DELTA && vector && holds_s(place))
      for_each_s(place,
                 [&](float& x, int output) { x = output < p.outputs ? vector[place.sequence_head * p.outputs + output] : 0.0f; });
    if (NORMALISES && vector && holds_n(place))
      for_each_n(place, [&](float& x, int column) {
        x = column < p.contracted ? vector[place.sequence_head * p.contracted + column] : 0.0f;
      });
  }

  XLSTM_DEVICE void store(const Place& place, float* state, float* vector) {  // either may be null
    const WalkParams& p = place.p;
    const int64_t matrix = place.sequence_head * p.contracted * p.outputs;
    // Through a shuffle, so that the compiler does not keep registers for addresses and columns across the walk.
    const int64_t lead = __shfl_sync(device::kAllLanes, TRANSPOSED ? p.contracted : p.outputs, 0);
    const int first = place.contracted_warp * WARP_CONTRACTED + device::c_coordinate(place.fragment, 0).column;
    const int first_column = __shfl_sync(device::kAllLanes, first, place.lane);
    if (state) {
#pragma unroll
      for (int tile = 0; tile < STATE_TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int output = output_of(place, tile, half), column = first_column + i * 8;
            const float* v = &S[tile][i][2 * half];
            if (output >= p.outputs || column >= p.contracted) continue;
            if (TRANSPOSED) {
              device::store_word(&state[matrix + output * lead + column], make_float2(v[0], v[1]));
            } else {
              state[matrix + column * lead + output] = v[0];
              state[matrix + (column + 1) * lead + output] = v[1];
            }
          }
        }
      }
    }
    if (DELTA && vector && place.contracted_warp == 0 && holds_s(place))
      for_each_s(place, [&](float& x, int output) {
        if (output < p.outputs) vector[place.sequence_head * p.outputs + output] = x;
      });
    if (NORMALISES && vector && place.output_block == 0)
      for_each_n(place, [&](float& x, int column) {
        if (holds_n(place) && column < p.contracted) vector[place.sequence_head * p.contracted + column] = x;
      });
  }

  // The rows of one pass: acc += reads (A S + delta s). The last pass leaves g S and g s behind.
  XLSTM_DEVICE void read(const Place& place, const StagedChunk& chunk, int pass, typename Walk::Sums& acc) {
    const float* record = chunk.record;
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
      uint32_t b[STATE_TILES][2][2];
#pragma unroll
      for (int tile = 0; tile < STATE_TILES; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            const float* v = &S[tile][2 * pair + x][2 * half];
            b[tile][half][x] = device::pack<Element>(v[0], v[1]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < PASS_ROW_TILES; ++i) {
        uint32_t a[4];
        device::ldmatrix_x4(a, place.contracted(chunk.a, (pass * PASS_ROW_TILES + i) * 16, pair * 16));
#pragma unroll
        for (int tile = 0; tile < STATE_TILES; ++tile) {
          device::mma_m16n8k16<Element>(acc[i][2 * tile], a, b[tile][0]);
          device::mma_m16n8k16<Element>(acc[i][2 * tile + 1], a, b[tile][1]);
        }
      }
    }
    float s_of_column[OUTPUT_TILES][2];
    if constexpr (DELTA) {
#pragma unroll
      for (int i = 0; i < OUTPUT_TILES; ++i) {
        const float v = s[i / 2][2 * (i & 1)];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = device::c_coordinate(place.fragment, e).column;  // of O; a row of S^T
          s_of_column[i][e] = __shfl_sync(device::kAllLanes, v, device::c_lane(column, 0));
          if (place.contracted_warp) s_of_column[i][e] = 0.0f;  // counted once
        }
      }
    }
#pragma unroll
    for (int i = 0; i < PASS_ROW_TILES; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = (pass * PASS_ROW_TILES + i) * 16 + device::c_coordinate(place.fragment, 2 * half).row;
        const float reads = record[Walk::kReads + row], delta = DELTA && !REVERSE ? record[Fields::kDelta + row] : 1.0f;
#pragma unroll
        for (int tile = 0; tile < OUTPUT_TILES; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = acc[i][tile][2 * half + e];
            x = reads * (DELTA ? x + delta * s_of_column[tile][e] : x);
          }
        }
      }
    }
    if (pass == Tile::ROW_PASSES - 1) decay(chunk.g);
  }

  // H: q.n over this warp's columns into its line of the row sums; leaves g n behind. Operand b has n in columns 0 and 2 (what
  // the rounding of column 0 lost).
  XLSTM_DEVICE void read_n(const Place& place, const StagedChunk& chunk) {
    float qn[ROW_TILES][4] = {};
#pragma unroll
    for (int pair = 0; pair < N_PAIRS; ++pair) {
      uint32_t b[2];
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        float* v = n[2 * pair + x];
        const uint32_t high = device::pack<Element>(v[0], v[1]);
        const uint32_t from_row0 =
            __shfl_up_sync(device::kAllLanes, rest_of(make_float2(v[0], v[1]), high), 2 * device::kLanesPerRow);
        b[x] = device::b_coordinate(place.fragment, 0).column == 2 ? from_row0 : high;
        v[0] *= chunk.g;
        v[1] *= chunk.g;
      }
#pragma unroll
      for (int row_tile = 0; row_tile < ROW_TILES; ++row_tile) {
        uint32_t a[4];
        device::ldmatrix_x4(a, place.contracted(chunk.a, row_tile * 16, (pair * OUTPUT_WARPS + place.output_warp) * 16));
        device::mma_m16n8k16<Element>(qn[row_tile], a, b);
      }
    }
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; ++row_tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const device::Coordinate in_tile = device::c_coordinate(place.fragment, 2 * half);
        float sum = qn[row_tile][2 * half] + qn[row_tile][2 * half + 1];
        sum += __shfl_xor_sync(device::kAllLanes, sum, 1);  // columns 0, 1 and 2, 3
        if (in_tile.column == 0) place.row_sums()[place.warp * L + row_tile * 16 + in_tile.row] = sum;
      }
    }
  }

  XLSTM_DEVICE void decay(float g) {  // of S and s
#pragma unroll
    for (int tile = 0; tile < STATE_TILES; ++tile) {
#pragma unroll
      for (int i = 0; i < 2 * PAIRS; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) S[tile][i][e] *= g;
      }
    }
#pragma unroll
    for (int tile = 0; tile < (DELTA ? STATE_TILES : 0); ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[tile][e] *= g;
    }
  }

  XLSTM_DEVICE void decay_n(float g) {
#pragma unroll
    for (int i = 0; i < (NORMALISES ? 2 * N_PAIRS : 0); ++i) {
      n[i][0] *= g;
      n[i][1] *= g;
    }
  }

  // S += X^T (writes B) for one tile of 16 keys, and s or n with it.
  XLSTM_DEVICE void update(const Place& place, const StagedChunk& chunk, int key_tile, const typename Walk::Operand& x) {
    const float* record = chunk.record + key_tile * 16;
    const int keys[2] = {device::a_coordinate(place.fragment, 0).column, device::a_coordinate(place.fragment, 4).column};
    const int row = device::a_coordinate(place.fragment, 0).row;
    const float2 w0 = device::load_word<float2>(record + Walk::kWrites + keys[0]);
    const float2 w1 = device::load_word<float2>(record + Walk::kWrites + keys[1]);
    const auto times = [](uint32_t pair, float2 w) {
      return device::pack<Element>(device::low_half<Element>(pair) * w.x, device::high_half<Element>(pair) * w.y);
    };
    uint32_t wx[STATE_TILES][4];
#pragma unroll
    for (int tile = 0; tile < STATE_TILES; ++tile) {
      wx[tile][0] = times(x[tile][0], w0);
      wx[tile][1] = times(x[tile][2], w0);
      wx[tile][2] = times(x[tile][1], w1);
      wx[tile][3] = times(x[tile][3], w1);
    }
    uint32_t wn[4] = {};
    if constexpr (NORMALISES) {  // row 0: w, row 1: what its rounding lost
      const uint32_t high0 = device::pack<Element>(w0.x, w0.y), high1 = device::pack<Element>(w1.x, w1.y);
      const uint32_t rest0 = rest_of(w0, high0), rest1 = rest_of(w1, high1);
      wn[0] = row == 0 ? high0 : row == 1 ? rest0 : 0u;
      wn[2] = row == 0 ? high1 : row == 1 ? rest1 : 0u;
    }
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
      uint32_t b[4];
      device::ldmatrix_x4<device::kTransposed>(b, place.contracted(chunk.b, key_tile * 16, pair * 16));
#pragma unroll
      for (int tile = 0; tile < STATE_TILES; ++tile) {
        device::mma_m16n8k16<Element>(S[tile][2 * pair], wx[tile], {b[0], b[1]});
        device::mma_m16n8k16<Element>(S[tile][2 * pair + 1], wx[tile], {b[2], b[3]});
      }
      if (NORMALISES && pair % OUTPUT_WARPS == place.output_warp) {
        const int i = NORMALISES ? pair / OUTPUT_WARPS * 2 : 0;
        device::mma_m16n8k16<Element>(n[i], wn, {b[0], b[1]});
        device::mma_m16n8k16<Element>(n[i + 1], wn, {b[2], b[3]});
      }
    }
    if constexpr (DELTA) {  // column 0: delta, column 1: what its rounding lost
      const int column = device::b_coordinate(place.fragment, 0).column;
      uint32_t d[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 delta = REVERSE ? device::load_word<float2>(record + Fields::kDelta + keys[half]) : make_float2(1.0f, 1.0f);
        const uint32_t high = device::pack<Element>(delta.x, delta.y);
        d[half] = column == 0 ? high : column == 1 ? rest_of(delta, high) : 0u;
      }
#pragma unroll
      for (int tile = 0; tile < STATE_TILES; ++tile) device::mma_m16n8k16<Element>(s[tile], wx[tile], d);
    }
  }

  // s and n after the chunk as one float32 each, as they would be in memory: a border between calls or segments changes no bit.
  XLSTM_DEVICE void join_parts(const Place& place) {
#pragma unroll
    for (int tile = 0; tile < (DELTA ? STATE_TILES : 0); ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        s[tile][2 * half] += s[tile][2 * half + 1];
        s[tile][2 * half + 1] = 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < (NORMALISES ? 2 * N_PAIRS : 0); ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float rest = __shfl_down_sync(device::kAllLanes, n[i][e], device::kLanesPerRow);
        n[i][e] = holds_n(place) ? n[i][e] + rest : 0.0f;
      }
    }
  }

 private:
  // Column of O of elements 2 half and 2 half + 1 of a tile of S^T.
  XLSTM_DEVICE static int output_of(const Place& place, int tile, int half) {
    return place.first_output + tile * 16 + device::c_coordinate(place.fragment, 2 * half).row;
  }
  // Lanes with column 0 of a tile, where s is, and with row 0, where n is.
  XLSTM_DEVICE static bool holds_s(const Place& place) { return device::c_coordinate(place.fragment, 0).column == 0; }
  XLSTM_DEVICE static bool holds_n(const Place& place) { return device::c_coordinate(place.fragment, 0).row == 0; }

  template <class Visit>
  XLSTM_DEVICE void for_each_s(const Place& place, Visit&& visit) {  // visit(value, column of O)
#pragma unroll
    for (int tile = 0; tile < STATE_TILES; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) visit(s[DELTA ? tile : 0][2 * half], output_of(place, tile, half));
    }
  }
  template <class Visit>
  XLSTM_DEVICE void for_each_n(const Place& place, Visit&& visit) {  // visit(value, column of A)
#pragma unroll
    for (int i = 0; i < 2 * N_PAIRS; ++i) {
      const int tile = i / 2 * OUTPUT_WARPS + place.output_warp;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        visit(n[i][e],
              place.contracted_warp * WARP_CONTRACTED + tile * 16 + (i & 1) * 8 + device::c_coordinate(place.fragment, e).column);
    }
  }
  XLSTM_DEVICE static uint32_t rest_of(float2 v, uint32_t high) {  // what rounding to `high` lost
    return device::pack<Element>(v.x - device::low_half<Element>(high), v.y - device::high_half<Element>(high));
  }
};

}  // namespace xlstm::mlstm
