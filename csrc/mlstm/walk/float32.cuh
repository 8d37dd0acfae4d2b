// float32.cuh - the walks H, dQ, dK, dV for float32 tensors: the equations of kernel.cuh on FMA units, exact to float32 rounding.
//
// Mapping: a block of 128 threads takes one sequence and head and OUTPUTS = 32 columns of O. Thread (row, output) of 16 x 8 owns
// rows row and row + 16 of P and O, columns 4 output to 4 output + 3 of O, and keys output, output + 8, ... of P. A and B pass
// through shared memory in slabs of 64 columns, because P, A S and the update of S need no more than one slab at a time; so one
// kernel serves every head dim up to 512. Shared memory: S 64 KiB at 512 contracted columns, slabs of A and B 17 KiB, X 4 KiB,
// P 4.5 KiB, record, n; 92.5 KiB in all.
// Precision: float32 products and sums (FFMA), the sums of every slab from zero, exponents as pairs (gates/records.h). Zeros of
// the causal mask are skipped, not multiplied, so NaN in v stays where it is.
#pragma once
#include "device/async_copy.cuh"
#include "device/launch.cuh"
#include "device/vector.cuh"
#include "mlstm/gates/records.h"
#include "mlstm/normaliser.cuh"
#include "mlstm/sequences.cuh"
#include "mlstm/walk/place.cuh"

namespace xlstm::mlstm {

struct Float32Tile {
  static constexpr int L = 32, OUTPUTS = 32, SLAB = 64, MOST_CONTRACTED = 512, THREADS = 128;
  static constexpr int OUTPUT_THREADS = OUTPUTS / 4, ROW_THREADS = THREADS / OUTPUT_THREADS;
  static constexpr int ROWS = L / ROW_THREADS, KEYS = L / OUTPUT_THREADS;  // of a thread
  static_assert(SLAB == 4 * ROW_THREADS, "a thread updates four rows of a slab of S");
};

struct Float32Shared {
  using Tile = Float32Tile;
  float A[Tile::L][Tile::SLAB + 4], B[Tile::L][Tile::SLAB + 4];  // padded: 16-byte reads of neighbouring rows hit different banks
  float X[Tile::L][Tile::OUTPUTS], P[Tile::L][Tile::L + 4];
  float record[Record<Tile::L>::kFloats];
  float s[Tile::OUTPUTS];          // DQ, DK
  float n[Tile::MOST_CONTRACTED];  // H
  float S[1][Tile::OUTPUTS];       // as many rows as contracted columns, rounded up to a whole slab
  static constexpr size_t bytes(int contracted) {
    const int rows = (contracted + Tile::SLAB - 1) / Tile::SLAB * Tile::SLAB;
    return sizeof(Float32Shared) + size_t(rows - 1) * sizeof(S[0]);
  }
};
static_assert(Float32Shared::bytes(Float32Tile::MOST_CONTRACTED) <= device::kSmallSharedMemory,
              "the largest head dim fits the GPUs with the least shared memory");

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
XLSTM_DEVICE float4 times4(float a, float4 b) { return make_float4(a * b.x, a * b.y, a * b.z, a * b.w); }
XLSTM_DEVICE float4 add4(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
XLSTM_DEVICE float4& four(float& first) { return *reinterpret_cast<float4*>(&first); }
XLSTM_DEVICE float sum_of_8_lanes(float x) {
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) x += __shfl_xor_sync(device::kAllLanes, x, offset);
  return x;
}

template <WalkUse USE, bool STATES_ONLY>
struct Float32Walk : UseTraits<USE, Record<Float32Tile::L>> {
  using Tile = Float32Tile;
  using Fields = Record<Tile::L>;
  using Traits = UseTraits<USE, Fields>;
  using Traits::REVERSE, Traits::NORMALISES, Traits::DELTA, Traits::TRANSPOSED;
  static constexpr int L = Tile::L, OUTPUTS = Tile::OUTPUTS, SLAB = Tile::SLAB, THREADS = Tile::THREADS;
  static constexpr int ROW_THREADS = Tile::ROW_THREADS, OUTPUT_THREADS = Tile::OUTPUT_THREADS;
  static constexpr int ROWS = Tile::ROWS, KEYS = Tile::KEYS;

  const WalkParams& p;
  Float32Shared& smem;
  float (*S)[OUTPUTS];
  int thread, output_thread, row_thread;
  int output_block, first_output, slabs, segment, segments, chunks;
  int64_t sequence_head, head;  // row of (N, NH)
  ChunkedSpan span;
  const float *A, *B, *X, *records;
  float* O;
  int64_t line;  // of (B, NH, S)

  // What a thread makes of a chunk. Apart, because the rest would wait for its loops to be unrolled before it gets registers.
  struct Sums {
    float score[ROWS][KEYS], qn[ROWS], row_sum[ROWS], inverse[ROWS];
    float4 out[ROWS];
  };

  XLSTM_DEVICE Float32Walk(const WalkParams& params, int64_t slots)
      : p(params), smem(*device::dynamic_shared<Float32Shared>()), S(smem.S), thread(int(threadIdx.x)) {
    output_thread = thread % OUTPUT_THREADS;
    row_thread = thread / OUTPUT_THREADS;
    const int output_blocks = (p.outputs + OUTPUTS - 1) / OUTPUTS;
    output_block = int(blockIdx.x % output_blocks);
    first_output = output_block * OUTPUTS;
    slabs = (p.contracted + SLAB - 1) / SLAB;
    segments = STATES_ONLY ? 1 : p.segments;
    segment = int(blockIdx.x / output_blocks % segments);
    sequence_head = blockIdx.x / (int64_t(output_blocks) * segments);
    head = sequence_head % p.sequences.NH;
    span = span_of(p.sequences, sequence_head / p.sequences.NH, L);
    chunks = int((span.length + L - 1) / L);
    A = start_of(p.A);
    B = start_of(p.B);
    X = start_of(p.X);
    O = const_cast<float*>(start_of(p.O));
    records = p.records + (head * slots + span.first_slot) * Fields::kFloats;
    line = (span.batch * p.sequences.NH + head) * p.sequences.S + span.first;
  }

  XLSTM_DEVICE const float* start_of(const View<>& x) const {
    return static_cast<const float*>(x.data) + span.batch * x.batch + span.first * x.step + head * x.head;
  }
  XLSTM_DEVICE Steps steps() const {
    return STATES_ONLY ? steps_before_last_segment(chunks, p.segments) : steps_of_segment(chunks, segments, segment);
  }
  XLSTM_DEVICE int row(int y) const { return row_thread + ROW_THREADS * y; }
  XLSTM_DEVICE int key(int x) const { return output_thread + OUTPUT_THREADS * x; }
  XLSTM_DEVICE float4& of_thread(float (&row)[OUTPUTS]) const { return four(row[output_thread * 4]); }

  // visit(c, o, offset) for the elements of S that lie in the state, in the order of memory; offset -1 outside.
  template <class Visit>
  XLSTM_DEVICE void for_each_state(Visit&& visit) const {
    for (int x = thread; x < slabs * SLAB * OUTPUTS; x += THREADS) {
      const int c = TRANSPOSED ? x % (slabs * SLAB) : x / OUTPUTS, o = TRANSPOSED ? x / (slabs * SLAB) : x % OUTPUTS;
      const bool inside = c < p.contracted && first_output + o < p.outputs;
      const int64_t offset =
          TRANSPOSED ? (first_output + o) * int64_t(p.contracted) + c : c * int64_t(p.outputs) + first_output + o;
      visit(c, o, inside ? sequence_head * p.contracted * p.outputs + offset : -1);
    }
  }

  XLSTM_DEVICE void load_state(const float* state, const float* vector) const {  // null is zero
    for_each_state([&](int c, int o, int64_t at) { S[c][o] = at >= 0 && state ? state[at] : 0.0f; });
    if (DELTA && thread < OUTPUTS) {
      const int output = first_output + thread;
      smem.s[thread] = vector && output < p.outputs ? vector[sequence_head * p.outputs + output] : 0.0f;
    }
    if (NORMALISES)
      for (int c = thread; c < slabs * SLAB; c += THREADS)
        smem.n[c] = vector && c < p.contracted ? vector[sequence_head * p.contracted + c] : 0.0f;
  }

  XLSTM_DEVICE void store_state(float* state, float* vector) const {  // either may be null
    if (state)
      for_each_state([&](int c, int o, int64_t at) {
        if (at >= 0) state[at] = S[c][o];
      });
    if (DELTA && vector && thread < OUTPUTS && first_output + thread < p.outputs)
      vector[sequence_head * p.outputs + first_output + thread] = smem.s[thread];
    if (NORMALISES && vector && output_block == 0)
      for (int c = thread; c < p.contracted; c += THREADS) vector[sequence_head * p.contracted + c] = smem.n[c];
  }

  XLSTM_DEVICE void begin_chunk(int index, Sums& sums) const {
    for (int unit = thread; unit < Fields::kFloats / 4; unit += THREADS)
      device::cp_async<16>(&smem.record[unit * 4], records + int64_t(index) * Fields::kFloats + unit * 4);
    load_slab<OUTPUTS>(smem.X, X, p.X.step, int64_t(index) * L, span.length, first_output, p.outputs);
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
#pragma unroll
      for (int x = 0; x < KEYS; ++x) sums.score[y][x] = 0.0f;
      sums.qn[y] = 0.0f;
      sums.out[y] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }

  XLSTM_DEVICE void load_slabs(int index, int slab) const {
    const int64_t first = int64_t(index) * L;
    if (!STATES_ONLY) load_slab<SLAB>(smem.A, A, p.A.step, first, span.length, slab * SLAB, p.contracted);
    load_slab<SLAB>(smem.B, B, p.B.step, first, span.length, slab * SLAB, p.contracted);
    device::cp_async_commit();
    device::cp_async_wait<0>();
  }

  // A B^T and A S over one slab. Its sums start at zero: the rounding error of one long sum would grow with the head dim.
  XLSTM_DEVICE void multiply(int slab, Sums& sums) const {
    const int first = slab * SLAB;
    float score_part[ROWS][KEYS] = {};
    float4 out_part[ROWS];
#pragma unroll
    for (int y = 0; y < ROWS; ++y) out_part[y] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 2
    for (int c = 0; c < SLAB; c += 4) {
      float4 a[ROWS];
#pragma unroll
      for (int y = 0; y < ROWS; ++y) a[y] = four(smem.A[row(y)][c]);
#pragma unroll
      for (int x = 0; x < KEYS; ++x) {
        const float4 b = four(smem.B[key(x)][c]);
#pragma unroll
        for (int y = 0; y < ROWS; ++y) score_part[y][x] = dot4(a[y], b, score_part[y][x]);
      }
      const float4 s0 = of_thread(S[first + c]), s1 = of_thread(S[first + c + 1]);
      const float4 s2 = of_thread(S[first + c + 2]), s3 = of_thread(S[first + c + 3]);
#pragma unroll
      for (int y = 0; y < ROWS; ++y)
        out_part[y] = fma4(a[y].w, s3, fma4(a[y].z, s2, fma4(a[y].y, s1, fma4(a[y].x, s0, out_part[y]))));
    }
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
#pragma unroll
      for (int x = 0; x < KEYS; ++x) sums.score[y][x] += score_part[y][x];
      sums.out[y] = add4(sums.out[y], out_part[y]);
    }
    if (NORMALISES) {  // q.n: every lane of a row takes its part of the columns
#pragma unroll
      for (int y = 0; y < ROWS; ++y) {
#pragma unroll
        for (int c = 0; c < SLAB; c += 4 * OUTPUT_THREADS)
          sums.qn[y] = dot4(four(smem.A[row(y)][c + output_thread * 4]), four(smem.n[first + c + output_thread * 4]), sums.qn[y]);
      }
    }
  }

  // S <- g S + writes B^T X for the rows of one slab, and n with it.
  XLSTM_DEVICE void update_state(int slab) const {
    const int first = slab * SLAB;
    const float g = smem.record[Fields::kG];
    float4 updated[4];
#pragma unroll
    for (int y = 0; y < 4; ++y) updated[y] = times4(g, of_thread(S[first + row_thread * 4 + y]));
#pragma unroll 4
    for (int j = 0; j < L; ++j) {
      const float4 wx = times4(smem.record[Traits::kWrites + j], of_thread(smem.X[j])), b = four(smem.B[j][row_thread * 4]);
      updated[0] = fma4(b.x, wx, updated[0]);
      updated[1] = fma4(b.y, wx, updated[1]);
      updated[2] = fma4(b.z, wx, updated[2]);
      updated[3] = fma4(b.w, wx, updated[3]);
    }
#pragma unroll
    for (int y = 0; y < 4; ++y) of_thread(S[first + row_thread * 4 + y]) = updated[y];
    if (NORMALISES && thread < SLAB) {
      float sum = g * smem.n[first + thread];
      for (int j = 0; j < L; ++j) sum = fmaf(smem.record[Traits::kWrites + j], smem.B[j][thread], sum);
      smem.n[first + thread] = sum;
    }
  }

  XLSTM_DEVICE void update_s() const {
    if (!DELTA || thread >= OUTPUTS) return;
    float sum = smem.record[Fields::kG] * smem.s[thread];
    for (int j = 0; j < L; ++j)
      sum = fmaf(smem.record[Traits::kWrites + j] * (REVERSE ? smem.record[Fields::kDelta + j] : 1.0f), smem.X[j][thread], sum);
    smem.s[thread] = sum;
  }

  XLSTM_DEVICE void write_scores(Sums& sums) const {
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
      sums.row_sum[y] = 0.0f;
#pragma unroll
      for (int x = 0; x < KEYS; ++x) {
        const int row = this->row(y), column = key(x), reads = REVERSE ? column : row;  // the step of the pair that reads
        const bool causal = REVERSE ? column >= row : column <= row;
        const bool seen = causal && float(REVERSE ? row : column) >= smem.record[Fields::kStart + reads];
        const float exponent = (smem.record[Traits::kRowHigh + row] + smem.record[Traits::kColumnHigh + column]) +
                               (smem.record[Traits::kRowLow + row] + smem.record[Traits::kColumnLow + column]);
        const float r = NORMALISES ? p.scale : smem.record[Fields::kR + reads];
        const float value =
            seen ? (sums.score[y][x] + (DELTA ? smem.record[Fields::kDelta + reads] : 0.0f)) * (r * exp2f(exponent)) : 0.0f;
        smem.P[row][column] = value;
        sums.row_sum[y] += value;
      }
    }
  }

  // out <- reads (A S + delta s), and the inverse of H's denominator.
  XLSTM_DEVICE void read_state(int index, Sums& sums) const {
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
      const float reads = smem.record[Traits::kReads + row(y)];
      if (DELTA) {
        const float delta = REVERSE ? 1.0f : smem.record[Fields::kDelta + row(y)];
        sums.out[y] = fma4(delta, of_thread(smem.s), sums.out[y]);
      }
      sums.out[y] = times4(reads, sums.out[y]);
      sums.inverse[y] = 1.0f;
      if (NORMALISES) {
        const int64_t step = int64_t(index) * L + row(y);
        const float d = sum_of_8_lanes(sums.row_sum[y]) + reads * sum_of_8_lanes(sums.qn[y]);
        if (p.normalize) sums.inverse[y] = normaliser_of(d, smem.record[Fields::kDelta + row(y)], p.eps).factor;
        if (output_block == 0 && output_thread == 0 && step < span.length) p.dot[line + step] = d;
      }
    }
  }

  // O = out + P X, and the row dots of DQ and DK.
  XLSTM_DEVICE void store_rows(int index, Sums& sums) const {
#pragma unroll
    for (int y = 0; y < ROWS; ++y) {
      const int first = REVERSE ? row(y) : 0, last = REVERSE ? L - 1 : row(y);
      for (int j = first; j <= last; ++j) sums.out[y] = fma4(smem.P[row(y)][j], of_thread(smem.X[j]), sums.out[y]);
      const int output = first_output + output_thread * 4;
      const int64_t step = int64_t(index) * L + row(y);
      const bool real = step < span.length, inside = real && output < p.outputs;
      if (inside) four(O[step * p.O.step + output]) = times4(sums.inverse[y], sums.out[y]);
      if (DELTA) {
        const float* with = start_of(p.row_dot_with) + step * p.row_dot_with.step + output;
        const float dot = sum_of_8_lanes(inside ? dot4(device::load_word<float4>(with), sums.out[y], 0.0f) : 0.0f);
        const int64_t part = output_block * p.sequences.B * p.sequences.NH * p.sequences.S;
        if (output_thread == 0 && real) p.row_dots[part + line + step] = dot;
      }
    }
  }
};

template <WalkUse USE, bool STATES_ONLY>
__global__ void __launch_bounds__(Float32Tile::THREADS, 1) walk_float32_kernel(const WalkParams p, int64_t slots) {
  using Walk = Float32Walk<USE, STATES_ONLY>;
  const Walk walk(p, slots);
  const Steps steps = walk.steps();
  const int segment = walk.segment;
  if (steps.first == steps.end && segment > 0) return;
  const int64_t rows = p.sequences.N * p.sequences.NH, matrix_size = rows * p.contracted * p.outputs;
  const int64_t vector_size = rows * (Walk::NORMALISES ? p.contracted : p.outputs);
  walk.load_state(segment == 0 ? p.state_start : p.segment_states + (segment - 1) * matrix_size,
                  segment == 0 ? p.vector_start : p.segment_vectors + (segment - 1) * vector_size);
  for (int step = steps.first; step < steps.end; ++step) {
    const int index = Walk::REVERSE ? walk.chunks - 1 - step : step;
    __syncthreads();  // everyone has left the chunk before
    typename Walk::Sums sums;
    walk.begin_chunk(index, sums);
    for (int slab = 0; slab < walk.slabs; ++slab) {
      walk.load_slabs(index, slab);
      __syncthreads();  // the slab is here
      if (!STATES_ONLY) walk.multiply(slab, sums);
      __syncthreads();  // S and n of the slab have been read
      walk.update_state(slab);
      __syncthreads();  // the slab is free
    }
    if (STATES_ONLY) {
      walk.update_s();
      __syncthreads();
      const int per_segment = steps_of_segment(walk.chunks, p.segments, 0).end;
      if ((step + 1) % per_segment == 0) {
        const int64_t border = (step + 1) / per_segment - 1;
        walk.store_state(p.segment_states + border * matrix_size, p.segment_vectors + border * vector_size);
      }
    } else {
      walk.write_scores(sums);
      walk.read_state(index, sums);
      __syncthreads();  // P is complete, s has been read
      walk.update_s();
      walk.store_rows(index, sums);
    }
  }
  __syncthreads();
  if (!STATES_ONLY && steps.end == walk.chunks) walk.store_state(p.state_end, p.vector_end);
}

}  // namespace xlstm::mlstm
