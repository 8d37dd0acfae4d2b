// walk_state.cuh - the state of a walk in registers: how it is loaded and stored, read by the rows of a chunk, and updated.
//
//   read     O_t = reads_t (A_t S + delta_t s)       reads: r_t u_t forward, w_j in reverse (without delta)
//   update   S <- g S + sum_j writes_j B_j^T X_j     s <- g s + sum_j writes_j delta_j X_j     n <- g n + sum_j w_j k_j
//
// Warp (wo, wc) of WO x WC owns S^T[16 MO rows o][C / WC columns c] as float32 accumulators. Packed, they are operand b of A S
// (k = c, n = o): elements 0, 1 for o 0-7, elements 2, 3 for o 8-15. X^T B takes the registers of X in the order 0, 2, 1, 3 as
// operand a (m = o, k = j): times the writing factor, packed again. n, delta and w are pairs of 16-bit numbers where they stand
// alone; what the low parts add is kept apart in the chunk and joined at its end.
#pragma once
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/walk_place.cuh"

namespace xlstm::mlstm {

template <class W>
struct WalkState {
  using T = typename W::T;
  using R = typename W::R;
  using Element = typename W::Element;
  using Place = WalkPlace<W>;
  static constexpr bool REVERSE = W::REVERSE, NORMALISES = W::NORMALISES, DELTA = W::DELTA, TRANSPOSED = W::TRANSPOSED;
  static constexpr int C = T::C, L = T::L, MT = T::MT, MR = T::MR, MO = T::MO, OT = T::OT, WO = T::WO, WC = T::WC, CW = T::CW;
  static constexpr int NI = NORMALISES ? CW / 16 / WO : 1;  // tiles of n of a warp

  float S[MO][CW / 8][4];
  // Beside S^T: s (column 0; DQ, DK) or n (row 0; H). Column 1 and row 1 take what the low parts of delta and w add.
  float s[DELTA ? MO : 1][4] = {};
  float nv[2 * NI][4] = {};

  XLSTM_DEVICE static int column_of_n(const Place& at, int i, int e) {
    return at.wc * CW + (i / 2 * WO + at.wo) * 16 + (i & 1) * 8 + 2 * at.quad + e;
  }

  XLSTM_DEVICE void load(const Place& at, const float* state, const float* vector) {  // null is zero
    const WalkParams& p = at.p;
    const int64_t state_row = at.row * p.c * p.o;
#pragma unroll
    for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
      for (int ct = 0; ct < CW / 8; ++ct) {
        if constexpr (XLSTM_DEVICE_ARCH >= 1000) __syncwarp();  // else ptxas holds all addresses at once, and spills
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int o = at.o_warp + mo * 16 + at.group + h * 8,
                    c = at.wc * CW + ct * 8 + 2 * at.quad;  // of two neighbours in a row of S^T
          float2 v = make_float2(0.0f, 0.0f);
          if (state && o < p.o && c < p.c) {
            const float* from = state + state_row;
            v = TRANSPOSED ? device::load_word<float2>(from + int64_t(o) * p.c + c)
                           : make_float2(from[c * int64_t(p.o) + o], from[(c + 1) * int64_t(p.o) + o]);
          }
          S[mo][ct][2 * h] = v.x;
          S[mo][ct][2 * h + 1] = v.y;
        }
      }
    }
    if (DELTA && vector && at.quad == 0) {
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int o = at.o_warp + mo * 16 + at.group + h * 8;
          s[DELTA ? mo : 0][2 * h] = o < p.o ? vector[at.row * p.o + o] : 0.0f;
        }
      }
    }
    if (NORMALISES && vector && at.group == 0) {
#pragma unroll
      for (int i = 0; i < 2 * NI; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = column_of_n(at, i, e);
          nv[i][e] = c < p.c ? vector[at.row * p.c + c] : 0.0f;
        }
      }
    }
  }

  XLSTM_DEVICE void store(const Place& at, float* state, float* vector) const {  // either may be null
    const WalkParams& p = at.p;
    const int64_t state_row = at.row * p.c * p.o;
    // Through a shuffle, so that the compiler does not keep registers for addresses and columns across the walk.
    const int64_t lead = __shfl_sync(device::kAllLanes, TRANSPOSED ? p.c : p.o, 0);
    const int column = __shfl_sync(device::kAllLanes, at.wc * CW + 2 * at.quad, at.lane);
    if (state) {
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
        for (int ct = 0; ct < CW / 8; ++ct) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int o = at.o_warp + mo * 16 + at.group + h * 8, c = column + ct * 8;
            const float* v = &S[mo][ct][2 * h];
            if (o >= p.o || c >= p.c) continue;
            if (TRANSPOSED) {
              device::store_word(&state[state_row + o * lead + c], make_float2(v[0], v[1]));
            } else {
              state[state_row + c * lead + o] = v[0];
              state[state_row + (c + 1) * lead + o] = v[1];
            }
          }
        }
      }
    }
    if (DELTA && vector && at.wc == 0 && at.quad == 0) {
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int o = at.o_warp + mo * 16 + at.group + h * 8;
          if (o < p.o) vector[at.row * p.o + o] = s[DELTA ? mo : 0][2 * h];
        }
      }
    }
    if (NORMALISES && vector && at.o_block == 0) {
#pragma unroll
      for (int i = 0; i < 2 * NI; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = column_of_n(at, i, e);
          if (at.group == 0 && c < p.c) vector[at.row * p.c + c] = nv[i][e];
        }
      }
    }
  }

  // The rows of one pass: acc += reads (A S + delta s). The last pass leaves g S and g s behind.
  XLSTM_DEVICE void read(const Place& at, const StagedChunk& chunk, int pass, float (&acc)[MR][OT][4]) {
    const float* record = chunk.record;
#pragma unroll
    for (int ct = 0; ct < CW / 16; ++ct) {
      uint32_t b[MO][2][2];
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            const float* v = &S[mo][2 * ct + x][2 * h];
            b[mo][h][x] = device::pack<Element>(v[0], v[1]);
          }
        }
      }
#pragma unroll
      for (int mt = 0; mt < MR; ++mt) {
        uint32_t a[4];
        device::ldmatrix_x4(a, at.smem + moved<C>(chunk.a + at.a_lane + at.wc * CW * 2, ct * 16) + (pass * MR + mt) * 16 * C * 2);
#pragma unroll
        for (int mo = 0; mo < MO; ++mo) {
          device::mma_m16n8k16<Element>(acc[mt][2 * mo], a, b[mo][0]);
          device::mma_m16n8k16<Element>(acc[mt][2 * mo + 1], a, b[mo][1]);
        }
      }
    }
    float s_column[OT][2];
    if constexpr (DELTA) {
#pragma unroll
      for (int i = 0; i < OT; ++i) {
        const float v = s[i / 2][2 * (i & 1)];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          s_column[i][e] = __shfl_sync(device::kAllLanes, v, (2 * at.quad + e) * 4);
          if (at.wc) s_column[i][e] = 0.0f;  // counted once
        }
      }
    }
#pragma unroll
    for (int mt = 0; mt < MR; ++mt) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = (pass * MR + mt) * 16 + at.group + h * 8;
        const float reads = record[W::kReads + t], delta = DELTA && !REVERSE ? record[R::kDelta + t] : 1.0f;
#pragma unroll
        for (int i = 0; i < OT; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = acc[mt][i][2 * h + e];
            x = reads * (DELTA ? x + delta * s_column[i][e] : x);
          }
        }
      }
    }
    if (pass == T::ROW_PASSES - 1) decay(chunk.g);
  }

  // H: q.n over this warp's columns into its line of the row sums; leaves g n behind. Operand b has n in columns 0 and 2 (what
  // the rounding of column 0 lost).
  XLSTM_DEVICE void read_n(const Place& at, const StagedChunk& chunk) {
    float qn[MT][4] = {};
#pragma unroll
    for (int i = 0; i < NI; ++i) {
      uint32_t b[2];
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        float* v = nv[2 * i + x];
        const uint32_t high = device::pack<Element>(v[0], v[1]);
        const uint32_t rest =
            device::pack<Element>(v[0] - device::low_half<Element>(high), v[1] - device::high_half<Element>(high));
        const uint32_t from_row0 = __shfl_up_sync(device::kAllLanes, rest, 8);
        b[x] = at.group == 2 ? from_row0 : high;
        v[0] *= chunk.g, v[1] *= chunk.g;
      }
#pragma unroll
      for (int mt = 0; mt < MT; ++mt) {
        uint32_t a[4];
        device::ldmatrix_x4(a, at.smem + moved<C>(chunk.a + at.a_lane + at.wc * CW * 2, (i * WO + at.wo) * 16) + mt * 16 * C * 2);
        device::mma_m16n8k16<Element>(qn[mt], a, b);
      }
    }
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = qn[mt][2 * h] + qn[mt][2 * h + 1];
        sum += __shfl_xor_sync(device::kAllLanes, sum, 1);
        if (at.quad == 0) at.row_sums()[at.warp * L + mt * 16 + at.group + h * 8] = sum;
      }
    }
  }

  XLSTM_DEVICE void decay(float g) {  // of S and s
#pragma unroll
    for (int mo = 0; mo < MO; ++mo) {
#pragma unroll
      for (int ct = 0; ct < CW / 8; ++ct) {
#pragma unroll
        for (int e = 0; e < 4; ++e) S[mo][ct][e] *= g;
      }
    }
#pragma unroll
    for (int mo = 0; mo < (DELTA ? MO : 0); ++mo) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[mo][e] *= g;
    }
  }

  XLSTM_DEVICE void decay_n(float g) {
#pragma unroll
    for (int i = 0; i < (NORMALISES ? 2 * NI : 0); ++i) nv[i][0] *= g, nv[i][1] *= g;
  }

  // S += X^T (writes B) for key tile kt, and s or n with it.
  XLSTM_DEVICE void update(const Place& at, const StagedChunk& chunk, int kt, const uint32_t (&x)[MO][4]) {
    const float* record = chunk.record;
    const int group = at.group, quad = at.quad;
    const float2 w0 = device::load_word<float2>(record + W::kWrites + kt * 16 + 2 * quad);
    const float2 w1 = device::load_word<float2>(record + W::kWrites + kt * 16 + 8 + 2 * quad);
    const auto times = [](uint32_t pair, float2 w) {
      return device::pack<Element>(device::low_half<Element>(pair) * w.x, device::high_half<Element>(pair) * w.y);
    };
    const auto rest_of = [](float2 v, uint32_t high) {
      return device::pack<Element>(v.x - device::low_half<Element>(high), v.y - device::high_half<Element>(high));
    };
    uint32_t wx[MO][4];
#pragma unroll
    for (int mo = 0; mo < MO; ++mo) {
      wx[mo][0] = times(x[mo][0], w0);
      wx[mo][1] = times(x[mo][2], w0);
      wx[mo][2] = times(x[mo][1], w1);
      wx[mo][3] = times(x[mo][3], w1);
    }
    uint32_t wn[4] = {};
    if constexpr (NORMALISES) {  // row 0: w, row 1: what its rounding lost
      const uint32_t high0 = device::pack<Element>(w0.x, w0.y), high1 = device::pack<Element>(w1.x, w1.y);
      const uint32_t rest0 = rest_of(w0, high0), rest1 = rest_of(w1, high1);
      wn[0] = group == 0 ? high0 : group == 1 ? rest0 : 0u;
      wn[2] = group == 0 ? high1 : group == 1 ? rest1 : 0u;
    }
#pragma unroll
    for (int ct = 0; ct < CW / 16; ++ct) {
      uint32_t b[4];
      device::ldmatrix_x4_trans(b, at.smem + moved<C>(chunk.b + at.a_lane + at.wc * CW * 2, ct * 16) + kt * 16 * C * 2);
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
        device::mma_m16n8k16<Element>(S[mo][2 * ct], wx[mo], {b[0], b[1]});
        device::mma_m16n8k16<Element>(S[mo][2 * ct + 1], wx[mo], {b[2], b[3]});
      }
      if (NORMALISES && ct % WO == at.wo) {
        device::mma_m16n8k16<Element>(nv[NORMALISES ? ct / WO * 2 : 0], wn, {b[0], b[1]});
        device::mma_m16n8k16<Element>(nv[NORMALISES ? ct / WO * 2 + 1 : 0], wn, {b[2], b[3]});
      }
    }
    if constexpr (DELTA) {
      uint32_t d[2];
#pragma unroll
      for (int x8 = 0; x8 < 2; ++x8) {
        const float2 delta =
            REVERSE ? device::load_word<float2>(record + R::kDelta + kt * 16 + 8 * x8 + 2 * quad) : make_float2(1.0f, 1.0f);
        const uint32_t high = device::pack<Element>(delta.x, delta.y);
        d[x8] = group == 0 ? high : group == 1 ? rest_of(delta, high) : 0u;
      }
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) device::mma_m16n8k16<Element>(s[mo], wx[mo], d);
    }
  }

  // s and n after the chunk as one float32 each, as they would be in memory: a border between calls or segments changes no bit.
  XLSTM_DEVICE void join_parts(const Place& at) {
#pragma unroll
    for (int mo = 0; mo < (DELTA ? MO : 0); ++mo) {
#pragma unroll
      for (int h = 0; h < 2; ++h) s[mo][2 * h] += s[mo][2 * h + 1], s[mo][2 * h + 1] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < (NORMALISES ? 2 * NI : 0); ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float rest = __shfl_down_sync(device::kAllLanes, nv[i][e], 4);
        nv[i][e] = at.group == 0 ? nv[i][e] + rest : 0.0f;
      }
    }
  }
};

}  // namespace xlstm::mlstm
