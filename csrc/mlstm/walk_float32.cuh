// walk_float32.cuh - the walks H, dQ, dK, dV for float32 tensors: the equations of walk.cuh on FMA units, exact to float32
// rounding.
//
// Mapping: a block of 128 threads takes one sequence and head and BO = 32 columns of O; thread (rg, og) of 16 x 8 owns rows rg
// and rg + 16 of P and O, and columns 4 og to 4 og + 3 of O (keys og, og + 8, ... of P). A and B pass through shared memory in
// slabs of 64 columns, because P, A S and the update of S need no more than one slab at a time; so one kernel serves every head
// dim up to 512. Shared memory: S (c x BO) 64 KiB at c = 512, slabs of A and B 17 KiB, X 4 KiB, P 4.5 KiB, record, n; 92.5 KiB in
// all. Precision: float32 products and sums (FFMA), the sums of every slab from zero, exponents as pairs (records.h). Zeros of
// the causal mask are skipped, not multiplied, so NaN in v stays where it is.
#pragma once
#include "device/async_copy.cuh"
#include "device/launch.cuh"
#include "device/vector.cuh"
#include "mlstm/normaliser.cuh"
#include "mlstm/records.h"
#include "mlstm/sequences.cuh"

namespace xlstm::mlstm {

struct Float32Tile {
  static constexpr int L = 32, BO = 32, SLAB = 64, THREADS = 128, ROWS = L / 16, KEYS = L / 8;
};

struct Float32Shared {
  using T = Float32Tile;
  float A[T::L][T::SLAB + 4], B[T::L][T::SLAB + 4];  // padded: 16-byte reads of neighbouring rows hit different banks
  float X[T::L][T::BO], P[T::L][T::L + 4];
  float record[Record<T::L>::kFloats];
  float s[T::BO];     // DQ, DK
  float n[512];       // H
  float S[1][T::BO];  // c rows, rounded up to a whole slab
  static size_t bytes(int c) { return sizeof(Float32Shared) + (size_t(c + T::SLAB - 1) / T::SLAB * T::SLAB - 1) * T::BO * 4; }
};

static_assert(sizeof(Float32Shared) + (512 - 1) * Float32Tile::BO * 4 <= 99 * 1024,
              "c = 512 fits the GPUs with the least shared memory");

// Rows [first, first + L) and WIDTH columns of a matrix; zero beyond `rows` and `columns`.
template <int WIDTH, int STRIDE>
XLSTM_DEVICE void load_slab(float (&slab)[Float32Tile::L][STRIDE], const float* matrix, int64_t row_stride, int64_t first,
                            int64_t rows, int column, int columns) {
  constexpr int kUnits = WIDTH / 4;
  for (int x = int(threadIdx.x); x < Float32Tile::L * kUnits; x += Float32Tile::THREADS) {
    const int r = x / kUnits, c = x % kUnits * 4;
    const bool inside = first + r < rows && column + c < columns;
    device::cp_async<16>(&slab[r][c], inside ? matrix + (first + r) * row_stride + column + c : matrix, inside ? 16 : 0);
  }
}

XLSTM_DEVICE float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
XLSTM_DEVICE float4 fma4(float a, float4 b, float4 sum) {
  return make_float4(fmaf(a, b.x, sum.x), fmaf(a, b.y, sum.y), fmaf(a, b.z, sum.z), fmaf(a, b.w, sum.w));
}
XLSTM_DEVICE float4 add4(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
XLSTM_DEVICE float4& four(float& first) { return *reinterpret_cast<float4*>(&first); }
XLSTM_DEVICE float sum_of_8_lanes(float x) {
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) x += __shfl_xor_sync(device::kAllLanes, x, offset);
  return x;
}

template <WalkUse USE, bool STATES_ONLY>
__global__ void __launch_bounds__(Float32Tile::THREADS, 1) walk_float32_kernel(const WalkParams p, int64_t slots) {
  constexpr bool REVERSE = USE == WalkUse::DK || USE == WalkUse::DV, NORMALISES = USE == WalkUse::H;
  constexpr bool DELTA = USE == WalkUse::DQ || USE == WalkUse::DK,
                 TRANSPOSED = DELTA;  // S is the transpose of the state in memory
  using T = Float32Tile;
  using R = Record<T::L>;
  constexpr int L = T::L, BO = T::BO, SLAB = T::SLAB, THREADS = T::THREADS, ROWS = T::ROWS, KEYS = T::KEYS;
  constexpr int kRowHigh = REVERSE ? R::kColumnHigh : R::kRowHigh, kRowLow = REVERSE ? R::kColumnLow : R::kRowLow;
  constexpr int kColumnHigh = REVERSE ? R::kRowHigh : R::kColumnHigh, kColumnLow = REVERSE ? R::kRowLow : R::kColumnLow;
  constexpr int kReads = REVERSE ? R::kW : R::kU, kWrites = REVERSE ? R::kU : R::kW;

  Float32Shared& smem = *device::dynamic_shared<Float32Shared>();
  float (*S)[BO] = smem.S;
  const int tid = int(threadIdx.x), og = tid % 8, rg = tid / 8;
  const int o_blocks = (p.o + BO - 1) / BO, o_block = int(blockIdx.x % o_blocks), o_first = o_block * BO,
            slabs = (p.c + SLAB - 1) / SLAB;
  const int segments = STATES_ONLY ? 1 : p.segments, segment = int(blockIdx.x / o_blocks % segments);
  const int64_t row = blockIdx.x / (int64_t(o_blocks) * segments), sequence = row / p.sequences.NH, head = row % p.sequences.NH;
  const Span span = span_of(p.sequences, sequence, L);
  const int chunks = int((span.length + L - 1) / L);
  const Steps steps = STATES_ONLY ? steps_before_last_segment(chunks, p.segments) : steps_of_segment(chunks, segments, segment);
  if (steps.first == steps.end && segment > 0) return;
  const int64_t state_rows = p.sequences.N * p.sequences.NH, vector_size = NORMALISES ? p.c : p.o;
  const float* state_start = segment == 0 ? p.state_start : p.segment_states + (segment - 1) * state_rows * p.c * p.o;
  const float* vector_start = segment == 0 ? p.vector_start : p.segment_vectors + (segment - 1) * state_rows * vector_size;
  const auto start_of = [&](const View<>& x) {
    return static_cast<const float*>(x.data) + span.batch * x.batch + span.first * x.step + head * x.head;
  };
  const float *A = start_of(p.A), *B = start_of(p.B), *X = start_of(p.X);
  float* O = const_cast<float*>(start_of(p.O));
  const float* records = p.records + (head * slots + span.first_slot) * R::kFloats;
  const int64_t line = (span.batch * p.sequences.NH + head) * p.sequences.S + span.first;  // of (B, NH, S)

  // visit(c, o, offset) for the elements of S that lie in the state, in the order of memory
  const auto for_each_state = [&](auto&& visit) {
    for (int x = tid; x < slabs * SLAB * BO; x += THREADS) {
      const int c = TRANSPOSED ? x % (slabs * SLAB) : x / BO, o = TRANSPOSED ? x / (slabs * SLAB) : x % BO;
      const bool inside = c < p.c && o_first + o < p.o;
      visit(c, o,
            inside ? row * p.c * p.o + (TRANSPOSED ? (o_first + o) * int64_t(p.c) + c : c * int64_t(p.o) + o_first + o) : -1);
    }
  };
  for_each_state([&](int c, int o, int64_t at) { S[c][o] = at >= 0 && state_start ? state_start[at] : 0.0f; });
  if (DELTA && tid < BO) smem.s[tid] = vector_start && o_first + tid < p.o ? vector_start[row * p.o + o_first + tid] : 0.0f;
  if (NORMALISES)
    for (int c = tid; c < slabs * SLAB; c += THREADS) smem.n[c] = vector_start && c < p.c ? vector_start[row * p.c + c] : 0.0f;

  const auto store_state = [&](float* state, float* vector) {  // either may be null
    if (state)
      for_each_state([&](int c, int o, int64_t at) {
        if (at >= 0) state[at] = S[c][o];
      });
    if (DELTA && vector && tid < BO && o_first + tid < p.o) vector[row * p.o + o_first + tid] = smem.s[tid];
    if (NORMALISES && vector && o_block == 0)
      for (int c = tid; c < p.c; c += THREADS) vector[row * p.c + c] = smem.n[c];
  };

  for (int step = steps.first; step < steps.end; ++step) {
    const int k = REVERSE ? chunks - 1 - step : step;
    const int64_t first = int64_t(k) * L;
    __syncthreads();  // everyone has left the chunk before
    for (int u = tid; u < R::kFloats / 4; u += THREADS)
      device::cp_async<16>(&smem.record[u * 4], records + int64_t(k) * R::kFloats + u * 4);
    load_slab<BO>(smem.X, X, p.X.step, first, span.length, o_first, p.o);

    float score[ROWS][KEYS] = {}, qn[ROWS] = {};
    float4 out[ROWS];
#pragma unroll
    for (int y = 0; y < ROWS; ++y) out[y] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    for (int slab = 0; slab < slabs; ++slab) {
      const int c_first = slab * SLAB;
      if (!STATES_ONLY) load_slab<SLAB>(smem.A, A, p.A.step, first, span.length, c_first, p.c);
      load_slab<SLAB>(smem.B, B, p.B.step, first, span.length, c_first, p.c);
      device::cp_async_commit();
      device::cp_async_wait<0>();
      __syncthreads();  // the slab is here
      // Sums of a slab start at zero: the rounding error of one long sum over c would grow with the head dim.
      float score_part[ROWS][KEYS] = {};
      float4 out_part[ROWS];
#pragma unroll
      for (int y = 0; y < ROWS; ++y) out_part[y] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
      for (int c = STATES_ONLY ? SLAB : 0; c < SLAB; c += 4) {
        float4 a[ROWS];
#pragma unroll
        for (int y = 0; y < ROWS; ++y) a[y] = four(smem.A[rg + 16 * y][c]);
#pragma unroll
        for (int x = 0; x < KEYS; ++x) {
          const float4 b = four(smem.B[og + 8 * x][c]);
#pragma unroll
          for (int y = 0; y < ROWS; ++y) score_part[y][x] = dot4(a[y], b, score_part[y][x]);
        }
        const float4 s0 = four(S[c_first + c][og * 4]), s1 = four(S[c_first + c + 1][og * 4]),
                     s2 = four(S[c_first + c + 2][og * 4]), s3 = four(S[c_first + c + 3][og * 4]);
#pragma unroll
        for (int y = 0; y < ROWS; ++y)
          out_part[y] = fma4(a[y].w, s3, fma4(a[y].z, s2, fma4(a[y].y, s1, fma4(a[y].x, s0, out_part[y]))));
      }
#pragma unroll
      for (int y = 0; y < ROWS; ++y) {
#pragma unroll
        for (int x = 0; x < KEYS; ++x) score[y][x] += score_part[y][x];
        out[y] = add4(out[y], out_part[y]);
      }
      if (NORMALISES && !STATES_ONLY) {  // q.n: every lane of a row takes its part of the columns
#pragma unroll
        for (int y = 0; y < ROWS; ++y) {
#pragma unroll
          for (int c = 0; c < SLAB; c += 32)
            qn[y] = dot4(four(smem.A[rg + 16 * y][c + og * 4]), four(smem.n[c_first + c + og * 4]), qn[y]);
        }
      }
      __syncthreads();  // S and n of the slab have been read

      const float g = smem.record[R::kG];
      float4 updated[4];
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        const float4 old = four(S[c_first + rg * 4 + y][og * 4]);
        updated[y] = make_float4(g * old.x, g * old.y, g * old.z, g * old.w);
      }
#pragma unroll 4
      for (int j = 0; j < L; ++j) {
        const float w = smem.record[kWrites + j];
        const float4 x = four(smem.X[j][og * 4]), wx = make_float4(w * x.x, w * x.y, w * x.z, w * x.w),
                     b = four(smem.B[j][rg * 4]);
        updated[0] = fma4(b.x, wx, updated[0]);
        updated[1] = fma4(b.y, wx, updated[1]);
        updated[2] = fma4(b.z, wx, updated[2]);
        updated[3] = fma4(b.w, wx, updated[3]);
      }
#pragma unroll
      for (int y = 0; y < 4; ++y) four(S[c_first + rg * 4 + y][og * 4]) = updated[y];
      if (NORMALISES && tid < SLAB) {
        float sum = g * smem.n[c_first + tid];
        for (int j = 0; j < L; ++j) sum = fmaf(smem.record[kWrites + j], smem.B[j][tid], sum);
        smem.n[c_first + tid] = sum;
      }
      __syncthreads();  // the slab is free
    }

    const auto update_s = [&] {
      if (!DELTA || tid >= BO) return;
      float sum = smem.record[R::kG] * smem.s[tid];
      for (int j = 0; j < L; ++j)
        sum = fmaf(smem.record[kWrites + j] * (REVERSE ? smem.record[R::kDelta + j] : 1.0f), smem.X[j][tid], sum);
      smem.s[tid] = sum;
    };
    if (STATES_ONLY) {
      update_s();
      __syncthreads();
      const int per_segment = steps_of_segment(chunks, p.segments, 0).end;
      if ((step + 1) % per_segment == 0) {
        const int64_t border = (step + 1) / per_segment - 1;
        store_state(p.segment_states + border * state_rows * p.c * p.o, p.segment_vectors + border * state_rows * vector_size);
      }
      continue;
    }

    float row_sum[ROWS] = {};
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
#pragma unroll
      for (int x = 0; x < KEYS; ++x) {
        const int t = rg + 16 * y, j = og + 8 * x, reads = REVERSE ? j : t;  // the step of the pair that reads, as in W_tj
        const bool seen = (REVERSE ? j >= t : j <= t) && float(REVERSE ? t : j) >= smem.record[R::kStart + reads];
        const float exponent =
            (smem.record[kRowHigh + t] + smem.record[kColumnHigh + j]) + (smem.record[kRowLow + t] + smem.record[kColumnLow + j]);
        const float r = NORMALISES ? p.scale : smem.record[R::kR + reads];
        const float value = seen ? (score[y][x] + (DELTA ? smem.record[R::kDelta + reads] : 0.0f)) * (r * exp2f(exponent)) : 0.0f;
        smem.P[t][j] = value;
        row_sum[y] += value;
      }
    }
    float inverse[ROWS];
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
      const int t = rg + 16 * y;
      const float reads = smem.record[kReads + t];
      if (DELTA) {
        const float delta = REVERSE ? 1.0f : smem.record[R::kDelta + t];
        out[y] = fma4(delta, four(smem.s[og * 4]), out[y]);
      }
      out[y] = make_float4(reads * out[y].x, reads * out[y].y, reads * out[y].z, reads * out[y].w);
      inverse[y] = 1.0f;
      if (NORMALISES) {
        const float d = sum_of_8_lanes(row_sum[y]) + reads * sum_of_8_lanes(qn[y]);
        if (p.normalize) inverse[y] = normaliser_of(d, smem.record[R::kDelta + t], p.eps).factor;
        if (o_block == 0 && og == 0 && first + t < span.length) p.dot[line + first + t] = d;
      }
    }
    __syncthreads();  // P is complete, s has been read
    update_s();
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
      const int t = rg + 16 * y;
      for (int j = REVERSE ? t : 0; j <= (REVERSE ? L - 1 : t); ++j) out[y] = fma4(smem.P[t][j], four(smem.X[j][og * 4]), out[y]);
      const int o = o_first + og * 4;
      const bool inside = first + t < span.length && o < p.o;
      if (inside)
        four(O[(first + t) * p.O.step + o]) =
            make_float4(out[y].x * inverse[y], out[y].y * inverse[y], out[y].z * inverse[y], out[y].w * inverse[y]);
      if (DELTA) {
        const float* with = start_of(p.row_dot_with) + (first + t) * p.row_dot_with.step + o;
        const float dot = sum_of_8_lanes(inside ? dot4(device::load_word<float4>(with), out[y], 0.0f) : 0.0f);
        if (og == 0 && first + t < span.length)
          p.row_dots[o_block * p.sequences.B * p.sequences.NH * p.sequences.S + line + first + t] = dot;
      }
    }
  }
  __syncthreads();
  if (!STATES_ONLY && steps.end == chunks) store_state(p.state_end, p.vector_end);
}

}  // namespace xlstm::mlstm
