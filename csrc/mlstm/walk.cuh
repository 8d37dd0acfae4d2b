// walk.cuh - one gated linear-attention walk over the chunks of a sequence; its four uses are H, dQ, dK and dV (params.h:
// WalkParams).
//
//   P_tj = (A_t.B_j + delta_t) r_t exp(row_t + column_j)       t the row that reads, j <= t the one that writes (records.h)
//   forward (H, DQ)   O_t = sum_j P_tj X_j + r_t u_t (A_t S + delta_t s)     S <- g S + sum_j w_j B_j^T X_j       s <- g s +
//   sum_j w_j X_j reverse (DK, DV)  O_j = sum_t P_tj X_t + w_j (A_j S + s)                 S <- g S + sum_t r_t u_t B_t^T X_t   s
//   <- g s + sum_t r_t u_t delta_t X_t H                 d_t = sum_j P_tj + r_t u_t q_t.n,  h_t = O_t / (max(|d_t|, exp(-m_t)) +
//   eps)                (M3, with r_t = scale)
// delta and s occur in DQ and DK; S is C, C^T, dC^T, dC in the order H, DQ, DK, DV; s is n and dn. H has n beside S.
//
// Mapping: a block takes one sequence and head and BO columns of O, and walks the chunks. Warp (wo, wc) of WO x WC owns
// S^T[16 MO rows o][C / WC columns c] as float32 accumulators in registers, from the first chunk to the last:
//   A S    the accumulators, packed, are operand b (k = c, n = o): elements 0, 1 for o 0-7, elements 2, 3 for o 8-15
//   A B^T  jobs of 16 x 8 PN tiles inside the triangle are dealt to the warps; P goes through shared memory in 16 bits
//   P X    X by ldmatrix.trans is operand b (k = j, n = o)
//   X^T B  the same registers in the order 0, 2, 1, 3 are operand a of X^T (m = o, k = j): times w, packed again
// With WC > 1 the parts of O are summed through shared memory, every warp keeping some tiles.
// Shared memory: walk_tile.cuh. Precision: products of 16-bit operands, float32 sums; P, S and w X are rounded to 16 bits as
// operands; n, delta and w as pairs of them where they stand alone.
// Segments: with few sequences and heads, every walk is cut into segments of whole chunks that run side by side. The states they
// start from come from a pass before (STATES_ONLY) that makes the same updates in the same order and nothing else: any number of
// segments gives the same bits. NaN or infinities in v must not reach earlier steps through the zeros of P: H looks at every
// fragment of X and leaves the fast path for that key tile (see `across_causal_zeros`). Elsewhere P's zeros are selected, not
// multiplied.
#pragma once
#include "device/barrier.cuh"
#include "device/launch.cuh"
#include "device/math.cuh"
#include "device/matrix.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "mlstm/normaliser.cuh"
#include "mlstm/sequences.cuh"
#include "mlstm/walk_tile.cuh"

namespace xlstm::mlstm {

constexpr float kLog2E = 1.4426950408889634f;

template <class Element, class T, WalkUse USE, bool STATES_ONLY>
__global__ void __launch_bounds__(T::THREADS, 1) walk_kernel(const WalkParams p, int64_t slots) {
  constexpr bool REVERSE = USE == WalkUse::DK || USE == WalkUse::DV, NORMALISES = USE == WalkUse::H;
  constexpr bool DELTA = USE == WalkUse::DQ || USE == WalkUse::DK,
                 TRANSPOSED = DELTA;  // S is the transpose of the state in memory
  constexpr int C = T::C, BO = T::BO, L = T::L, MT = T::MT, MR = T::MR, NT = T::NT, MO = T::MO, OT = T::OT, WO = T::WO,
                WC = T::WC, CW = T::CW, PN = T::PN;
  using R = Record<L>;
  using Shared = WalkShared<T>;
  // which part of the record belongs to the rows and columns of P as this walk sees it
  constexpr int kRowHigh = REVERSE ? R::kColumnHigh : R::kRowHigh, kRowLow = REVERSE ? R::kColumnLow : R::kRowLow;
  constexpr int kColumnHigh = REVERSE ? R::kRowHigh : R::kColumnHigh, kColumnLow = REVERSE ? R::kRowLow : R::kColumnLow;
  constexpr int kReads = REVERSE ? R::kW : R::kU, kWrites = REVERSE ? R::kU : R::kW;

  unsigned char* smem = device::dynamic_shared<unsigned char>();
  const int lane = int(threadIdx.x % 32), warp = int(device::warp_id()), group = lane / 4, quad = lane % 4, wo = warp % WO,
            wc = warp / WO;
  const int o_blocks = (p.o + BO - 1) / BO, o_block = int(blockIdx.x % o_blocks);
  const int segments = STATES_ONLY ? 1 : p.segments, segment = int(blockIdx.x / o_blocks % segments);
  const int64_t row = blockIdx.x / (int64_t(o_blocks) * segments), n = row / p.sequences.NH, head = row % p.sequences.NH;
  const Span span = span_of(p.sequences, n, L);
  const int chunks = int((span.length + L - 1) / L);
  const Steps steps = STATES_ONLY ? steps_before_last_segment(chunks, p.segments) : steps_of_segment(chunks, segments, segment);
  if (steps.first == steps.end && segment > 0) return;
  const auto start_of = [&](const void* tensor, StepStrides s) {
    return static_cast<const Element*>(tensor) + span.batch * s.batch + span.first * s.step + head * s.head;
  };
  const Element *A = start_of(p.A, p.A_strides), *B = start_of(p.B, p.B_strides), *X = start_of(p.X, p.X_strides);
  Element* O = const_cast<Element*>(start_of(p.O, p.O_strides));
  const float* records = p.records + (head * slots + span.first_slot) * R::kFloats;
  const int64_t line = (span.batch * p.sequences.NH + head) * p.sequences.S + span.first;  // of (B, NH, S)
  const int o_warp = o_block * BO + wo * MO * 16;

  // this lane's part of the addresses it hands to ldmatrix
  const int a_lane = swizzled<C>(lane & 15, lane >> 4);  // operand a, row-major; operand b from a tile [k][n], transposed
  const int b_lane = PN == 1 ? swizzled<C>(lane & 7, lane >> 3) : swizzled<C>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
  const int x_lane = swizzled<BO>(lane & 15, (wo * MO * 16 >> 3) ^ (lane >> 4));
  const int p_lane = swizzled<L>(lane & 15, lane >> 4);

  const auto load_a = [&](int k, int stage) {
    load_tile<C, L, T::THREADS>(smem + Shared::A + stage * Shared::A_BYTES, A, p.A_strides.step, int64_t(k) * L, span.length, 0,
                                p.c);
  };
  const auto load_rest = [&](int k, int stage) {
    load_tile<C, L, T::THREADS>(smem + Shared::B + stage * Shared::A_BYTES, B, p.B_strides.step, int64_t(k) * L, span.length, 0,
                                p.c);
    load_tile<BO, L, T::THREADS>(smem + Shared::X + stage * Shared::X_BYTES, X, p.X_strides.step, int64_t(k) * L, span.length,
                                 o_block * BO, p.o);
    for (int u = int(threadIdx.x); u < R::kFloats / 4; u += T::THREADS)
      device::cp_async<16>(smem + Shared::RECORD + stage * Shared::RECORD_BYTES + u * 16,
                           records + int64_t(k) * R::kFloats + u * 4);
  };
  const auto chunk_at = [&](int step) { return REVERSE ? chunks - 1 - step : step; };
  if (steps.first < steps.end) {
    if (!STATES_ONLY) load_a(chunk_at(steps.first), 0);
    load_rest(chunk_at(steps.first), 0);
  }
  device::cp_async_commit();

  // S^T, and beside it s (column 0) or n (row 0). Column 1 and row 1 take what the low parts of delta and w add in this chunk.
  float S[MO][CW / 8][4];
  float s[DELTA ? MO : 1][4] = {};
  constexpr int NI = NORMALISES ? CW / 16 / WO : 1;
  float nv[2 * NI][4] = {};
  const int64_t rows = p.sequences.N * p.sequences.NH, state_row = row * p.c * p.o, vector_size = NORMALISES ? p.c : p.o;
  const float* state_start = segment == 0 ? p.state_start : p.segment_states + (segment - 1) * rows * p.c * p.o;
  const float* vector_start = segment == 0 ? p.vector_start : p.segment_vectors + (segment - 1) * rows * vector_size;
#pragma unroll
  for (int mo = 0; mo < MO; ++mo)
#pragma unroll
    for (int ct = 0; ct < CW / 8; ++ct)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int o = o_warp + mo * 16 + group + h * 8, c = wc * CW + ct * 8 + 2 * quad;  // of two neighbours in a row of S^T
        float2 v = make_float2(0.0f, 0.0f);
        if (state_start && o < p.o && c < p.c) {
          const float* at = state_start + state_row;
          v = TRANSPOSED ? device::load_word<float2>(at + int64_t(o) * p.c + c)
                         : make_float2(at[c * int64_t(p.o) + o], at[(c + 1) * int64_t(p.o) + o]);
        }
        S[mo][ct][2 * h] = v.x;
        S[mo][ct][2 * h + 1] = v.y;
      }
  if (DELTA && vector_start && quad == 0)
#pragma unroll
    for (int mo = 0; mo < MO; ++mo)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int o = o_warp + mo * 16 + group + h * 8;
        s[DELTA ? mo : 0][2 * h] = o < p.o ? vector_start[row * p.o + o] : 0.0f;
      }
  if (NORMALISES && vector_start && group == 0)
#pragma unroll
    for (int i = 0; i < 2 * NI; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = wc * CW + (i / 2 * WO + wo) * 16 + (i & 1) * 8 + 2 * quad + e;
        nv[i][e] = c < p.c ? vector_start[row * p.c + c] : 0.0f;
      }

  const auto store_state = [&](float* state, float* vector) {  // either may be null
    // Through a shuffle, so that the compiler does not keep a register for every address across the walk.
    const int64_t lead = __shfl_sync(device::kAllLanes, TRANSPOSED ? p.c : p.o, 0);
    if (state)
#pragma unroll
      for (int mo = 0; mo < MO; ++mo)
#pragma unroll
        for (int ct = 0; ct < CW / 8; ++ct)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int o = o_warp + mo * 16 + group + h * 8, c = wc * CW + ct * 8 + 2 * quad;  // of two neighbours in a row of S^T
            const float* v = &S[mo][ct][2 * h];
            if (o >= p.o || c >= p.c) continue;
            if (TRANSPOSED) {
              device::store_word(&state[state_row + o * lead + c], make_float2(v[0], v[1]));
            } else {
              state[state_row + c * lead + o] = v[0];
              state[state_row + (c + 1) * lead + o] = v[1];
            }
          }
    if (DELTA && vector && wc == 0 && quad == 0)
#pragma unroll
      for (int mo = 0; mo < MO; ++mo)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int o = o_warp + mo * 16 + group + h * 8;
          if (o < p.o) vector[row * p.o + o] = s[DELTA ? mo : 0][2 * h];
        }
    if (NORMALISES && vector && o_block == 0)
#pragma unroll
      for (int i = 0; i < 2 * NI; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = wc * CW + (i / 2 * WO + wo) * 16 + (i & 1) * 8 + 2 * quad + e;
          if (group == 0 && c < p.c) vector[row * p.c + c] = nv[i][e];
        }
  };

  float* row_sums = reinterpret_cast<float*>(smem + Shared::ROW_SUMS);
  const auto store_row_dots = [&](int k) {  // of a chunk that every warp has finished
    for (int t = int(threadIdx.x); t < L; t += T::THREADS) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < T::WARPS; ++w) sum += row_sums[w * L + t];
      if (int64_t(k) * L + t < span.length)
        p.row_dots[o_block * p.sequences.B * p.sequences.NH * p.sequences.S + line + int64_t(k) * L + t] = sum;
    }
  };

#pragma unroll 1
  for (int step = steps.first; step < steps.end; ++step) {
    const int stage = T::STAGES == 2 ? (step - steps.first) & 1 : 0, k = chunk_at(step);
    const bool more = step + 1 < steps.end;
    device::cp_async_wait<0>();
    __syncthreads();  // chunk k is here; everyone has left the chunk before
    if (T::STAGES == 2 && more) {
      if (!STATES_ONLY) load_a(chunk_at(step + 1), stage ^ 1);
      load_rest(chunk_at(step + 1), stage ^ 1);
    }
    if (T::STAGES == 2) device::cp_async_commit();
    if (DELTA && !STATES_ONLY && step > steps.first) store_row_dots(chunk_at(step - 1));
    const float* record = reinterpret_cast<const float*>(smem + Shared::RECORD + stage * Shared::RECORD_BYTES);
    const int a_stage = Shared::A + stage * Shared::A_BYTES, b_stage = Shared::B + stage * Shared::A_BYTES,
              x_stage = Shared::X + stage * Shared::X_BYTES;
    const float g = record[R::kG];

    // ---- P, one job at a time
#pragma unroll 1
    for (int job = STATES_ONLY ? T::JOBS : warp; job < T::JOBS; job += T::WARPS) {
      const int job_row = T::JOB_ROW >> 4 * job & 15, job_key = T::JOB_KEY >> 4 * job & 15;
      const int m = REVERSE ? MT - 1 - job_row : job_row, n0 = REVERSE ? NT - PN - job_key : job_key;
      const int width = min(PN, 2 * job_row + 2 - job_key);  // tiles of the job inside the triangle
      const int a_job = a_stage + a_lane + m * 16 * C * 2, b_job = b_stage + b_lane + n0 * 8 * C * 2;
      float acc[PN == 1 ? 2 : PN][4] = {};
#pragma unroll 1
      for (int k0 = 0; k0 < C; k0 += 64)
#pragma unroll
        for (int kk = 0; kk < 64; kk += 16) {
          uint32_t a[4], b[4];
          device::ldmatrix_x4(a, smem + moved<C>(a_job, kk) + k0 * 2);
          if constexpr (PN == 1) {  // two sums, so that a product does not wait for the one before
            if (kk % 32 == 0) device::ldmatrix_x4(b, smem + moved<C>(b_job, kk) + k0 * 2);
            device::mma_m16n8k16<Element>(acc[kk / 16 % 2], a, {b[kk / 8 % 4], b[kk / 8 % 4 + 1]});
          } else {
#pragma unroll
            for (int i = 0; i < PN; i += 2)
              if (PN == 2 || width == PN || (REVERSE ? i >= PN - 2 : i == 0)) {
                device::ldmatrix_x4(b, smem + moved<C>(b_job, kk) + k0 * 2 + i * 8 * C * 2);
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
        const float2 high = device::load_word<float2>(record + kColumnHigh + j),
                     low = device::load_word<float2>(record + kColumnLow + j);
        float2 r = make_float2(p.scale, p.scale), delta = make_float2(0.0f, 0.0f), start = make_float2(0.0f, 0.0f);
        if (REVERSE) {
          r = device::load_word<float2>(record + R::kR + j);
          start = device::load_word<float2>(record + R::kStart + j);
          if (DELTA) delta = device::load_word<float2>(record + R::kDelta + j);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int t = m * 16 + group + h * 8;
          const float row_high = record[kRowHigh + t], row_low = record[kRowLow + t];
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
          *reinterpret_cast<uint32_t*>(smem + Shared::P + swizzled<L>(t, n0 + i) + 4 * quad) = device::pack<Element>(p0, p1);
        }
      }
      if constexpr (NORMALISES)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 1);
          sum[h] += __shfl_xor_sync(device::kAllLanes, sum[h], 2);
          if (quad == 0) row_sums[(T::WARPS + n0 / PN) * L + m * 16 + group + h * 8] = sum[h];
        }
    }

    // ---- q.n over this warp's columns: operand b has n in columns 0 and 2 (what the rounding of column 0 lost)
    if constexpr (NORMALISES && !STATES_ONLY) {
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
          b[x] = group == 2 ? from_row0 : high;
          v[0] *= g, v[1] *= g;
        }
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
          uint32_t a[4];
          device::ldmatrix_x4(a, smem + moved<C>(a_stage + a_lane + wc * CW * 2, (i * WO + wo) * 16) + mt * 16 * C * 2);
          device::mma_m16n8k16<Element>(qn[mt], a, b);
        }
      }
#pragma unroll
      for (int mt = 0; mt < MT; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float sum = qn[mt][2 * h] + qn[mt][2 * h + 1];
          sum += __shfl_xor_sync(device::kAllLanes, sum, 1);
          if (quad == 0) row_sums[warp * L + mt * 16 + group + h * 8] = sum;
        }
    }

    // ---- rows of one pass: O = reads (A S + delta s); the last pass leaves g S, g s behind
    const auto from_state = [&](float (&acc)[MR][OT][4], int pass) {
      const float decay = pass == T::ROW_PASSES - 1 ? g : 1.0f;
#pragma unroll
      for (int ct = 0; ct < CW / 16; ++ct) {
        uint32_t b[MO][2][2];
#pragma unroll
        for (int mo = 0; mo < MO; ++mo)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int x = 0; x < 2; ++x) {
              float* v = &S[mo][2 * ct + x][2 * h];
              b[mo][h][x] = device::pack<Element>(v[0], v[1]);
              v[0] *= decay, v[1] *= decay;
            }
#pragma unroll
        for (int mt = 0; mt < MR; ++mt) {
          uint32_t a[4];
          device::ldmatrix_x4(a, smem + moved<C>(a_stage + a_lane + wc * CW * 2, ct * 16) + (pass * MR + mt) * 16 * C * 2);
#pragma unroll
          for (int mo = 0; mo < MO; ++mo) {
            device::mma_m16n8k16<Element>(acc[mt][2 * mo], a, b[mo][0]);
            device::mma_m16n8k16<Element>(acc[mt][2 * mo + 1], a, b[mo][1]);
          }
        }
      }
      float s_column[OT][2];
      if constexpr (DELTA)
#pragma unroll
        for (int i = 0; i < OT; ++i) {
          const float v = s[i / 2][2 * (i & 1)];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            s_column[i][e] = __shfl_sync(device::kAllLanes, v, (2 * quad + e) * 4);
            if (wc) s_column[i][e] = 0.0f;  // counted once
          }
        }
#pragma unroll
      for (int mt = 0; mt < MR; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int t = (pass * MR + mt) * 16 + group + h * 8;
          const float reads = record[kReads + t], delta = DELTA && !REVERSE ? record[R::kDelta + t] : 1.0f;
#pragma unroll
          for (int i = 0; i < OT; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& x = acc[mt][i][2 * h + e];
              x = reads * (DELTA ? x + delta * s_column[i][e] : x);
            }
        }
      if constexpr (DELTA)
        if (pass == T::ROW_PASSES - 1)
#pragma unroll
          for (int mo = 0; mo < MO; ++mo)
#pragma unroll
            for (int e = 0; e < 4; ++e) s[mo][e] *= g;
    };
    const auto x_fragments = [&](uint32_t (&x)[MO][4], int kt) {
#pragma unroll
      for (int mo = 0; mo < MO; ++mo)
        device::ldmatrix_x4_trans(x[mo], smem + moved<BO>(x_stage + x_lane, mo * 16) + kt * 16 * BO * 2);
    };
    // O += P X for key tile kt; the tile on the diagonal takes its own copy of X
    const auto add_p_x = [&](float (&acc)[MR][OT][4], int pass, int kt, const uint32_t (&x)[MO][4],
                             const uint32_t (&x_diagonal)[MO][4]) {
      if (WC == 1 || kt % WC == wc)
#pragma unroll
        for (int mt = 0; mt < MR; ++mt)
          if (REVERSE ? pass * MR + mt <= kt : pass * MR + mt >= kt) {
            uint32_t a[4];
            device::ldmatrix_x4(a, smem + Shared::P + moved<L>(p_lane, kt * 16) + (pass * MR + mt) * 16 * L * 2);
#pragma unroll
            for (int mo = 0; mo < MO; ++mo) {
              uint32_t b[4];
#pragma unroll
              for (int e = 0; e < 4; ++e) b[e] = pass * MR + mt == kt ? x_diagonal[mo][e] : x[mo][e];
              device::mma_m16n8k16<Element>(acc[mt][2 * mo], a, {b[0], b[1]});
              device::mma_m16n8k16<Element>(acc[mt][2 * mo + 1], a, {b[2], b[3]});
            }
          }
    };
    // The same for a tile of X with values that are not finite: on the diagonal they are left out of the product, and NaN is
    // written where P is not zero by construction, that is from their own step on.
    const auto across_causal_zeros = [&](float (&acc)[MR][OT][4], int pass, int kt, const uint32_t (&x)[MO][4]) {
      uint32_t x_nan[MO][4], x_zero[MO][4];
#pragma unroll
      for (int mo = 0; mo < MO; ++mo)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          x_nan[mo][e] = device::nan_unless_finite<Element>(x[mo][e]),
          x_zero[mo][e] = device::zero_unless_finite<Element>(x[mo][e]);
      add_p_x(acc, pass, kt, x_nan, x_zero);
#pragma unroll
      for (int mt = 0; mt < MR; ++mt)
        if (pass * MR + mt == kt)
#pragma unroll
          for (int i = 0; i < OT; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int t = group + (e >> 1) * 8, column = wo * MO * 16 + i * 8 + 2 * quad + (e & 1);
#pragma unroll 1
              for (int j = 0; j <= t; ++j) {
                const unsigned char* at = smem + x_stage + swizzled<BO>(kt * 16 + j, column / 8) + column % 8 * 2;
                if (device::not_finite<Element>(*reinterpret_cast<const uint16_t*>(at))) acc[mt][i][e] = NAN;
              }
            }
    };
    const auto add_key_tile = [&](float (&acc)[MR][OT][4], int pass, int kt, const uint32_t (&x)[MO][4]) {
      if constexpr (NORMALISES) {
        uint32_t bad = 0;
#pragma unroll
        for (int mo = 0; mo < MO; ++mo)
#pragma unroll
          for (int e = 0; e < 4; ++e) bad |= device::not_finite<Element>(x[mo][e]);
        if (__any_sync(device::kAllLanes, bad != 0)) return across_causal_zeros(acc, pass, kt, x);
      }
      add_p_x(acc, pass, kt, x, x);
    };
    // S += X^T (writes B) for key tile kt, and s or n with it
    const auto update = [&](int kt, const uint32_t (&x)[MO][4]) {
      const float2 w0 = device::load_word<float2>(record + kWrites + kt * 16 + 2 * quad);
      const float2 w1 = device::load_word<float2>(record + kWrites + kt * 16 + 8 + 2 * quad);
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
        device::ldmatrix_x4_trans(b, smem + moved<C>(b_stage + a_lane + wc * CW * 2, ct * 16) + kt * 16 * C * 2);
#pragma unroll
        for (int mo = 0; mo < MO; ++mo) {
          device::mma_m16n8k16<Element>(S[mo][2 * ct], wx[mo], {b[0], b[1]});
          device::mma_m16n8k16<Element>(S[mo][2 * ct + 1], wx[mo], {b[2], b[3]});
        }
        if (NORMALISES && ct % WO == wo) {
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
    };
    // s and n after the chunk as one float32 each, as they would be in memory: a border between calls or segments changes no bit.
    const auto join_parts = [&] {
#pragma unroll
      for (int mo = 0; mo < (DELTA ? MO : 0); ++mo)
#pragma unroll
        for (int h = 0; h < 2; ++h) s[mo][2 * h] += s[mo][2 * h + 1], s[mo][2 * h + 1] = 0.0f;
#pragma unroll
      for (int i = 0; i < (NORMALISES ? 2 * NI : 0); ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float rest = __shfl_down_sync(device::kAllLanes, nv[i][e], 4);
          nv[i][e] = group == 0 ? nv[i][e] + rest : 0.0f;
        }
    };
    float inverse[NORMALISES ? L / 32 : 1];  // of the denominator, row t = 32 i + lane
    const auto normaliser = [&] {
#pragma unroll
      for (int i = 0; i < L / 32; ++i) {
        const int t = i * 32 + lane;
        float d = 0.0f;
#pragma unroll
        for (int w = 0; w < T::WARPS; ++w) d += row_sums[w * L + t];
        d *= record[kReads + t];
#pragma unroll
        for (int x = 0; x < NT / PN; ++x)
          if (x * PN <= t / 16 * 2 + 1) d += row_sums[(T::WARPS + x) * L + t];
        inverse[i] = p.normalize ? normaliser_of(d, record[R::kDelta + t], p.eps).factor : 1.0f;
        if (o_block == 0 && warp == 0 && int64_t(k) * L + t < span.length) p.dot[line + int64_t(k) * L + t] = d;
      }
    };
    const auto store = [&](float (&acc)[MR][OT][4], int pass) {
      if constexpr (WC > 1) {  // warp wc keeps tiles [wc KEPT, (wc + 1) KEPT)
        float4* parts = reinterpret_cast<float4*>(smem + Shared::O_PARTS) + wo * (WC - 1) * MR * OT * 32 + lane;
        if (pass) device::named_barrier_sync(1 + wo, WC * 32);  // the parts of the pass before have been read
#pragma unroll
        for (int i = 0; i < MR * OT; ++i) {
          const int owner = i / T::KEPT;
          const float* x = acc[i / OT][i % OT];
          if (owner == wc) continue;
          const int line = (owner * (WC - 1) + (wc < owner ? wc : wc - 1)) * T::KEPT + i % T::KEPT;
          device::store_word(&parts[line * 32], make_float4(x[0], x[1], x[2], x[3]));
        }
        device::named_barrier_sync(1 + wo, WC * 32);
#pragma unroll
        for (int i = 0; i < MR * OT; ++i)
          if (i / T::KEPT == wc)
#pragma unroll
            for (int other = 0; other < WC - 1; ++other) {
              const float4 v = device::load_word<float4>(&parts[((i / T::KEPT * (WC - 1) + other) * T::KEPT + i % T::KEPT) * 32]);
              float* x = acc[i / OT][i % OT];
              x[0] += v.x, x[1] += v.y, x[2] += v.z, x[3] += v.w;
            }
      }
      const bool odd = quad & 1;
#pragma unroll
      for (int mt = 0; mt < MR; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int t = (pass * MR + mt) * 16 + group + h * 8;
          const int64_t step_t = int64_t(k) * L + t;
          const bool real = step_t < span.length;
          float y = 1.0f, dot = 0.0f;
          if constexpr (NORMALISES)
            y = __shfl_sync(device::kAllLanes, (pass * MR + mt) / 2 == 0 ? inverse[0] : inverse[NORMALISES ? L / 32 - 1 : 0],
                            t & 31);
#pragma unroll
          for (int mo = 0; mo < MO; ++mo) {
            const float *x0 = &acc[mt][2 * mo][2 * h], *x1 = &acc[mt][2 * mo + 1][2 * h];
            const uint32_t v0 = device::pack<Element>(x0[0] * y, x0[1] * y), v1 = device::pack<Element>(x1[0] * y, x1[1] * y);
            const int i = mt * OT + 2 * mo;
            const auto times = [](uint32_t pair, float x, float y) {
              return device::low_half<Element>(pair) * x + device::high_half<Element>(pair) * y;
            };
            const Element* dot_with = nullptr;
            if constexpr (DELTA) dot_with = start_of(p.row_dot_with, p.row_dot_strides) + step_t * p.row_dot_strides.step;
            if constexpr (T::KEPT >= 2) {  // swapped with the neighbour: 8 bytes per lane, 32 bytes per row
              if (WC > 1 && i / T::KEPT != wc) continue;
              const int o = o_warp + mo * 16 + (quad >> 1) * 4 + odd * 8;
              const bool inside = real && o < p.o;
              const uint32_t from = __shfl_xor_sync(device::kAllLanes, odd ? v0 : v1, 1);
              if (inside) device::store_word(O + step_t * p.O_strides.step + o, make_uint2(odd ? from : v0, odd ? v1 : from));
              if constexpr (DELTA) {
                const uint2 pairs = inside ? device::load_word<uint2>(dot_with + o) : make_uint2(0u, 0u);
                const uint32_t other = __shfl_xor_sync(device::kAllLanes, odd ? pairs.x : pairs.y, 1);
                dot += times(odd ? other : pairs.x, x0[0], x0[1]) + times(odd ? pairs.y : other, x1[0], x1[1]);
              }
            } else {
              const int kept = i / T::KEPT == wc         ? 0
                               : (i + 1) / T::KEPT == wc ? 1
                                                         : -1,
                        o = o_warp + mo * 16 + kept * 8 + 2 * quad;
              if (kept < 0 || !real || o >= p.o) continue;
              *reinterpret_cast<uint32_t*>(O + step_t * p.O_strides.step + o) = kept ? v1 : v0;
              if constexpr (DELTA)
                dot += times(*reinterpret_cast<const uint32_t*>(dot_with + o), kept ? x1[0] : x0[0], kept ? x1[1] : x0[1]);
            }
          }
          if constexpr (DELTA) {
            dot += __shfl_xor_sync(device::kAllLanes, dot, 1);
            dot += __shfl_xor_sync(device::kAllLanes, dot, 2);
            if (quad == 0) row_sums[warp * L + t] = dot;
          }
        }
    };

    if constexpr (STATES_ONLY) {
#pragma unroll
      for (int mo = 0; mo < MO; ++mo)
#pragma unroll
        for (int ct = 0; ct < CW / 8; ++ct)
#pragma unroll
          for (int e = 0; e < 4; ++e) S[mo][ct][e] *= g;
#pragma unroll
      for (int mo = 0; mo < (DELTA ? MO : 0); ++mo)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[mo][e] *= g;
#pragma unroll
      for (int i = 0; i < (NORMALISES ? 2 * NI : 0); ++i) nv[i][0] *= g, nv[i][1] *= g;
#pragma unroll 1
      for (int kt = 0; kt < MT; ++kt) {
        uint32_t x[MO][4];
        x_fragments(x, kt);
        update(kt, x);
      }
      join_parts();
      const int per_segment = steps_of_segment(chunks, p.segments, 0).end;
      if ((step + 1) % per_segment == 0) {
        const int64_t border = (step + 1) / per_segment - 1;
        store_state(p.segment_states + border * rows * p.c * p.o, p.segment_vectors + border * rows * vector_size);
      }
    } else if constexpr (T::ROW_PASSES == 1) {
      float acc[MR][OT][4] = {};
      from_state(acc, 0);
      __syncthreads();  // P is complete; A is free
      if (T::STAGES == 1 && more) load_a(chunk_at(step + 1), 0);
#pragma unroll
      for (int kt = 0; kt < MT; ++kt) {
        uint32_t x[MO][4];
        x_fragments(x, kt);
        add_key_tile(acc, 0, kt, x);
        update(kt, x);
      }
      if constexpr (NORMALISES) normaliser();
      store(acc, 0);
    } else {
      __syncthreads();  // P is complete
      if constexpr (NORMALISES) normaliser();
#pragma unroll 1  // unrolled, both passes would share the packed S, which costs more registers than there are
      for (int pass = 0; pass < T::ROW_PASSES; ++pass) {
        float acc[MR][OT][4] = {};
        from_state(acc, pass);
#pragma unroll 1
        for (int kt = 0; kt < MT; ++kt)
          if (REVERSE ? pass * MR <= kt : pass * MR + MR - 1 >= kt) {
            uint32_t x[MO][4];
            x_fragments(x, kt);
            add_key_tile(acc, pass, kt, x);
          }
        store(acc, pass);
      }
#pragma unroll 1
      for (int kt = 0; kt < MT; ++kt) {
        uint32_t x[MO][4];
        x_fragments(x, kt);
        update(kt, x);
      }
    }
    if constexpr (!STATES_ONLY) join_parts();
    if constexpr (T::STAGES == 1) {
      __syncthreads();  // B, X and the record are free
      if (T::ROW_PASSES > 1 && !STATES_ONLY && more) load_a(chunk_at(step + 1), 0);
      if (more) load_rest(chunk_at(step + 1), 0);
      device::cp_async_commit();
    }
  }
  if (STATES_ONLY) return;
  if (DELTA && steps.first < steps.end) {
    __syncthreads();
    store_row_dots(chunk_at(steps.end - 1));
  }
  if (steps.end == chunks) store_state(p.state_end, p.vector_end);
}

}  // namespace xlstm::mlstm
