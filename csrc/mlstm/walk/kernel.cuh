// kernel.cuh - one gated linear-attention walk over the chunks of a sequence; its four uses are H, dQ, dK and dV (params.h:
// WalkParams).
//
//   forward (H, DQ)    P_tj = (A_t.B_j + delta_t) r_t 2^(row_t + column_j)     t the step that reads, j <= t the one that writes;
//   reverse (DK, DV)   P_tj = (A_j.B_t + delta_t) r_t 2^(row_t + column_j)     exponents: gates/records.h
//
//   forward   O_t = sum_j P_tj X_j + r_t u_t (A_t S + delta_t s)
//             S <- g S + sum_j w_j B_j^T X_j                   s <- g s + sum_j w_j X_j
//   reverse   O_j = sum_t P_tj X_t + w_j (A_j S + s)
//             S <- g S + sum_t r_t u_t B_t^T X_t               s <- g s + sum_t r_t u_t delta_t X_t
//   H         d_t = sum_j P_tj + r_t u_t q_t.n,   h_t = O_t / (max(|d_t|, exp(-m_t)) + eps)      (M3, with r_t = scale)
// delta and s occur in DQ and DK; S is C, C^T, dC^T, dC in the order H, DQ, DK, DV; s is n and dn. H has n beside S.
//
// Mapping: a block takes one sequence and head and OUTPUTS columns of O, and walks the chunks. In a chunk
//   P     A B^T, jobs dealt to the warps, to shared memory in 16 bits         scores.cuh
//   read  A S, with S in registers from the first chunk to the last           state.cuh
//   P X   added to the same accumulators                                      product.cuh, containment.cuh
//   X^T B added to S                                                          state.cuh
//   O     summed over the warps that share its columns, stored                store.cuh
// Shared memory: shared.cuh. Precision: products of 16-bit operands, float32 sums; P, S and w X are rounded to 16 bits as
// operands. Segments: with few sequences and heads, every walk is cut into segments of whole chunks that run side by side. The
// states they start from come from a pass before (STATES_ONLY) that makes the same updates in the same order and nothing else:
// any number of segments gives the same bits.
#pragma once
#include "device/launch.cuh"
#include "mlstm/walk/containment.cuh"
#include "mlstm/walk/scores.cuh"
#include "mlstm/walk/state.cuh"
#include "mlstm/walk/store.cuh"

namespace xlstm::mlstm {

// Is the kernel of a tile left out of the code that is being compiled, because no GPU that runs it gets the tile? It needs more
// shared memory than launches ask for there, or all those GPUs have enough for the better tile.
template <class Tile, class Better = typename Tile::BetterTile>
constexpr bool kLeftOut = int(sizeof(WalkShared<Tile>)) > device::kMostSharedMemory ||
                          int(sizeof(WalkShared<WalkTile<Better>>)) <= device::kLeastSharedMemory;
template <class Tile>
constexpr bool kLeftOut<Tile, void> = int(sizeof(WalkShared<Tile>)) > device::kMostSharedMemory;

template <class Element, class Tile, WalkUse USE, bool STATES_ONLY>
__global__ void __launch_bounds__(Tile::THREADS, 1) walk_kernel(const WalkParams p, int64_t slots) {
  using Walk = WalkTraits<Element, Tile, USE>;
  using Fields = typename Walk::Fields;
  if constexpr (kLeftOut<Tile>) return device::stop();
  constexpr int CONTRACTED = Tile::CONTRACTED, OUTPUTS = Tile::OUTPUTS, L = Tile::L, THREADS = Tile::THREADS;
  constexpr int ROW_TILES = Tile::ROW_TILES, PASS_ROW_TILES = Tile::PASS_ROW_TILES;

  const WalkPlace<Walk> place(p, !STATES_ONLY);
  const int segment = place.segment, chunks = int((place.span.length + L - 1) / L);
  const Steps steps =
      STATES_ONLY ? steps_before_last_segment(chunks, p.segments) : steps_of_segment(chunks, place.segments, segment);
  if (steps.first == steps.end && segment > 0) return;
  if (threadIdx.x == 0 && !STATES_ONLY) place.write_results();
  const auto chunk_at = [&](int step) { return Walk::REVERSE ? chunks - 1 - step : step; };

  const Element *A = place.start_of(p.A), *B = place.start_of(p.B), *X = place.start_of(p.X);
  const float* records = p.records + (place.head * slots + place.span.first_slot) * Fields::kFloats;
  const auto load_a = [&](int index, int stage) {
    const StagedChunk to = place.staged(index, stage);
    load_tile<CONTRACTED, L, THREADS>(place.smem + to.a, A, p.A.step, int64_t(index) * L, place.span.length, 0, p.contracted);
  };
  const auto load_rest = [&](int index, int stage) {
    const StagedChunk to = place.staged(index, stage);
    const int64_t first = int64_t(index) * L;
    load_tile<CONTRACTED, L, THREADS>(place.smem + to.b, B, p.B.step, first, place.span.length, 0, p.contracted);
    load_tile<OUTPUTS, L, THREADS>(place.smem + to.x, X, p.X.step, first, place.span.length, place.output_block * OUTPUTS,
                                   p.outputs);
    for (int unit = int(threadIdx.x); unit < Fields::kFloats / 4; unit += THREADS)
      device::cp_async<16>(to.record + unit * 4, records + int64_t(index) * Fields::kFloats + unit * 4);
  };
  if (steps.first < steps.end) {
    if (!STATES_ONLY) load_a(chunk_at(steps.first), 0);
    load_rest(chunk_at(steps.first), 0);
  }
  device::cp_async_commit();

  WalkState<Walk> state;
  const int64_t rows = p.sequences.N * p.sequences.NH, matrix_size = rows * p.contracted * p.outputs;
  const int64_t vector_size = rows * (Walk::NORMALISES ? p.contracted : p.outputs);
  state.load(place, segment == 0 ? p.state_start : p.segment_states + (segment - 1) * matrix_size,
             segment == 0 ? p.vector_start : p.segment_vectors + (segment - 1) * vector_size);

#pragma unroll 1
  for (int step = steps.first; step < steps.end; ++step) {
    const int stage = Tile::STAGES == 2 ? (step - steps.first) & 1 : 0;
    const bool more = step + 1 < steps.end;
    device::cp_async_wait<0>();
    __syncthreads();  // the chunk is here; everyone has left the chunk before
    if (Tile::STAGES == 2 && more) {
      if (!STATES_ONLY) load_a(chunk_at(step + 1), stage ^ 1);
      load_rest(chunk_at(step + 1), stage ^ 1);
    }
    if (Tile::STAGES == 2) device::cp_async_commit();
    if (Walk::DELTA && !STATES_ONLY && step > steps.first) store_row_dots(place, chunk_at(step - 1));
    StagedChunk chunk = place.staged(chunk_at(step), stage);
    chunk.g = chunk.record[Fields::kG];

    if constexpr (STATES_ONLY) {
      state.decay(chunk.g);
      state.decay_n(chunk.g);
#pragma unroll 1
      for (int key_tile = 0; key_tile < ROW_TILES; ++key_tile) {
        typename Walk::Operand x;
        load_x(place, chunk, key_tile, x);
        state.update(place, chunk, key_tile, x);
      }
    } else {
      write_scores(place, chunk);
      if constexpr (Walk::NORMALISES) state.read_n(place, chunk);
      float inverse[L / 32];
      if constexpr (Tile::ROW_PASSES == 1) {
        typename Walk::Sums acc = {};
        state.read(place, chunk, 0, acc);
        __syncthreads();  // P is complete; A is free
        if (Tile::STAGES == 1 && more) load_a(chunk_at(step + 1), 0);
#pragma unroll
        for (int key_tile = 0; key_tile < ROW_TILES; ++key_tile) {
          typename Walk::Operand x;
          load_x(place, chunk, key_tile, x);
          add_key_tile(place, chunk, acc, 0, key_tile, x);
          state.update(place, chunk, key_tile, x);
        }
        if constexpr (Walk::NORMALISES) inverse_normaliser(place, chunk, inverse);
        store_rows(place, chunk, acc, 0, inverse);
      } else {
        __syncthreads();  // P is complete
        if constexpr (Walk::NORMALISES) inverse_normaliser(place, chunk, inverse);
#pragma unroll 1  // unrolled, both passes would share the packed S, which costs more registers than there are
        for (int pass = 0; pass < Tile::ROW_PASSES; ++pass) {
          typename Walk::Sums acc = {};
          state.read(place, chunk, pass, acc);
          const int first = Walk::REVERSE ? pass * PASS_ROW_TILES : 0;
          const int end = Walk::REVERSE ? ROW_TILES : pass * PASS_ROW_TILES + PASS_ROW_TILES;
#pragma unroll 1
          for (int key_tile = first; key_tile < end; ++key_tile)
            if (place.multiplies(key_tile)) {
              typename Walk::Operand x;
              load_x(place, chunk, key_tile, x);
              add_key_tile(place, chunk, acc, pass, key_tile, x);
            }
          store_rows(place, chunk, acc, pass, inverse);
        }
#pragma unroll 1
        for (int key_tile = 0; key_tile < ROW_TILES; ++key_tile) {
          typename Walk::Operand x;
          load_x(place, chunk, key_tile, x);
          state.update(place, chunk, key_tile, x);
        }
      }
    }
    state.join_parts(place);
    if constexpr (STATES_ONLY) {
      const int per_segment = steps_of_segment(chunks, p.segments, 0).end;
      if ((step + 1) % per_segment == 0) {
        const int64_t border = (step + 1) / per_segment - 1;
        state.store(place, p.segment_states + border * matrix_size, p.segment_vectors + border * vector_size);
      }
    }
    if constexpr (Tile::STAGES == 1) {
      __syncthreads();  // B, X and the record are free
      if (Tile::ROW_PASSES > 1 && !STATES_ONLY && more) load_a(chunk_at(step + 1), 0);
      if (more) load_rest(chunk_at(step + 1), 0);
      device::cp_async_commit();
    }
  }
  if (STATES_ONLY) return;
  if (Walk::DELTA && chunks > 0) {
    __syncthreads();
    store_row_dots(place, chunk_at(steps.end - 1));
  }
  if (steps.end == chunks) state.store(place, p.state_end, p.vector_end);
}

}  // namespace xlstm::mlstm
