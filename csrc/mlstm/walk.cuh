// walk.cuh - one gated linear-attention walk over the chunks of a sequence; its four uses are H, dQ, dK and dV (params.h:
// WalkParams).
//
//   P_tj = (A_t.B_j + delta_t) r_t 2^(row_t + column_j)        t the row that reads, j <= t the one that writes (records.h)
//   forward (H, DQ)    O_t = sum_j P_tj X_j + r_t u_t (A_t S + delta_t s)
//                      S <- g S + sum_j w_j B_j^T X_j             s <- g s + sum_j w_j X_j
//   reverse (DK, DV)   O_j = sum_t P_tj X_t + w_j (A_j S + s)
//                      S <- g S + sum_t r_t u_t B_t^T X_t         s <- g s + sum_t r_t u_t delta_t X_t
//   H                  d_t = sum_j P_tj + r_t u_t q_t.n,   h_t = O_t / (max(|d_t|, exp(-m_t)) + eps)      (M3, with r_t = scale)
// delta and s occur in DQ and DK; S is C, C^T, dC^T, dC in the order H, DQ, DK, DV; s is n and dn. H has n beside S.
//
// Mapping: a block takes one sequence and head and BO columns of O, and walks the chunks. In a chunk
//   P     A B^T, jobs dealt to the warps, to shared memory in 16 bits         walk_scores.cuh
//   read  A S, with S in registers from the first chunk to the last           walk_state.cuh
//   P X   added to the same accumulators                                      walk_product.cuh, walk_containment.cuh
//   X^T B added to S                                                          walk_state.cuh
//   O     summed over the warps that share its columns, stored                walk_store.cuh
// Shared memory: walk_tile.cuh. Precision: products of 16-bit operands, float32 sums; P, S and w X are rounded to 16 bits as
// operands.
// Segments: with few sequences and heads, every walk is cut into segments of whole chunks that run side by side. The states they
// start from come from a pass before (STATES_ONLY) that makes the same updates in the same order and nothing else: any number of
// segments gives the same bits.
#pragma once
#include "device/launch.cuh"
#include "mlstm/walk_containment.cuh"
#include "mlstm/walk_scores.cuh"
#include "mlstm/walk_state.cuh"
#include "mlstm/walk_store.cuh"

namespace xlstm::mlstm {

template <class Element, class T, WalkUse USE, bool STATES_ONLY>
__global__ void __launch_bounds__(T::THREADS, 1) walk_kernel(const WalkParams p, int64_t slots) {
  using W = WalkTraits<Element, T, USE>;
  using R = typename W::R;
  using Shared = typename W::Shared;
  // Left out where no GPU that runs this code gets the tile: it needs too much shared memory, or all have enough for a better one.
  if constexpr (WalkShared<T>::BYTES > device::kMostSharedMemory || T::kBetterTileFrom <= device::kLeastSharedMemory)
    return device::stop();
  constexpr int C = T::C, BO = T::BO, L = T::L, MT = T::MT, MR = T::MR, MO = T::MO, OT = T::OT;

  const WalkPlace<W> at(p, !STATES_ONLY);
  const int segment = at.segment, chunks = int((at.span.length + L - 1) / L);
  const Steps steps =
      STATES_ONLY ? steps_before_last_segment(chunks, p.segments) : steps_of_segment(chunks, at.segments, segment);
  if (steps.first == steps.end && segment > 0) return;
  if (threadIdx.x == 0 && !STATES_ONLY) at.write_results();
  const auto chunk_at = [&](int step) { return W::REVERSE ? chunks - 1 - step : step; };

  const Element *A = at.start_of(p.A), *B = at.start_of(p.B), *X = at.start_of(p.X);
  const float* records = p.records + (at.head * slots + at.span.first_slot) * R::kFloats;
  const auto load_a = [&](int k, int stage) {
    load_tile<C, L, T::THREADS>(at.smem + Shared::A + stage * Shared::A_BYTES, A, p.A.step, int64_t(k) * L, at.span.length, 0,
                                p.c);
  };
  const auto load_rest = [&](int k, int stage) {
    load_tile<C, L, T::THREADS>(at.smem + Shared::B + stage * Shared::A_BYTES, B, p.B.step, int64_t(k) * L, at.span.length, 0,
                                p.c);
    load_tile<BO, L, T::THREADS>(at.smem + Shared::X + stage * Shared::X_BYTES, X, p.X.step, int64_t(k) * L, at.span.length,
                                 at.o_block * BO, p.o);
    for (int u = int(threadIdx.x); u < R::kFloats / 4; u += T::THREADS)
      device::cp_async<16>(at.smem + Shared::RECORD + stage * Shared::RECORD_BYTES + u * 16,
                           records + int64_t(k) * R::kFloats + u * 4);
  };
  if (steps.first < steps.end) {
    if (!STATES_ONLY) load_a(chunk_at(steps.first), 0);
    load_rest(chunk_at(steps.first), 0);
  }
  device::cp_async_commit();

  WalkState<W> state;
  const int64_t rows = p.sequences.N * p.sequences.NH, matrix_size = rows * p.c * p.o,
                vector_size = rows * (W::NORMALISES ? p.c : p.o);
  state.load(at, segment == 0 ? p.state_start : p.segment_states + (segment - 1) * matrix_size,
             segment == 0 ? p.vector_start : p.segment_vectors + (segment - 1) * vector_size);

#pragma unroll 1
  for (int step = steps.first; step < steps.end; ++step) {
    const int stage = T::STAGES == 2 ? (step - steps.first) & 1 : 0;
    const bool more = step + 1 < steps.end;
    device::cp_async_wait<0>();
    __syncthreads();  // chunk k is here; everyone has left the chunk before
    if (T::STAGES == 2 && more) {
      if (!STATES_ONLY) load_a(chunk_at(step + 1), stage ^ 1);
      load_rest(chunk_at(step + 1), stage ^ 1);
    }
    if (T::STAGES == 2) device::cp_async_commit();
    if (W::DELTA && !STATES_ONLY && step > steps.first) store_row_dots(at, chunk_at(step - 1));
    StagedChunk chunk;
    chunk.k = chunk_at(step);
    chunk.a = Shared::A + stage * Shared::A_BYTES, chunk.b = Shared::B + stage * Shared::A_BYTES,
    chunk.x = Shared::X + stage * Shared::X_BYTES;
    chunk.record = reinterpret_cast<const float*>(at.smem + Shared::RECORD + stage * Shared::RECORD_BYTES);
    chunk.g = chunk.record[R::kG];

    if constexpr (STATES_ONLY) {
      state.decay(chunk.g), state.decay_n(chunk.g);
#pragma unroll 1
      for (int kt = 0; kt < MT; ++kt) {
        uint32_t x[MO][4];
        load_x(at, chunk, kt, x);
        state.update(at, chunk, kt, x);
      }
    } else {
      write_scores(at, chunk);
      if constexpr (W::NORMALISES) state.read_n(at, chunk);
      float inverse[L / 32];
      if constexpr (T::ROW_PASSES == 1) {
        float acc[MR][OT][4] = {};
        state.read(at, chunk, 0, acc);
        __syncthreads();  // P is complete; A is free
        if (T::STAGES == 1 && more) load_a(chunk_at(step + 1), 0);
#pragma unroll
        for (int kt = 0; kt < MT; ++kt) {
          uint32_t x[MO][4];
          load_x(at, chunk, kt, x);
          add_key_tile(at, chunk, acc, 0, kt, x);
          state.update(at, chunk, kt, x);
        }
        if constexpr (W::NORMALISES) inverse_normaliser(at, chunk, inverse);
        store_rows(at, chunk, acc, 0, inverse);
      } else {
        __syncthreads();  // P is complete
        if constexpr (W::NORMALISES) inverse_normaliser(at, chunk, inverse);
#pragma unroll 1  // unrolled, both passes would share the packed S, which costs more registers than there are
        for (int pass = 0; pass < T::ROW_PASSES; ++pass) {
          float acc[MR][OT][4] = {};
          state.read(at, chunk, pass, acc);
#pragma unroll 1
          for (int kt = W::REVERSE ? pass * MR : 0, end = W::REVERSE ? MT : pass * MR + MR; kt < end; ++kt)
            if (at.multiplies(kt)) {
              uint32_t x[MO][4];
              load_x(at, chunk, kt, x);
              add_key_tile(at, chunk, acc, pass, kt, x);
            }
          store_rows(at, chunk, acc, pass, inverse);
        }
#pragma unroll 1
        for (int kt = 0; kt < MT; ++kt) {
          uint32_t x[MO][4];
          load_x(at, chunk, kt, x);
          state.update(at, chunk, kt, x);
        }
      }
    }
    state.join_parts(at);
    if constexpr (STATES_ONLY) {
      const int per_segment = steps_of_segment(chunks, p.segments, 0).end;
      if ((step + 1) % per_segment == 0) {
        const int64_t border = (step + 1) / per_segment - 1;
        state.store(at, p.segment_states + border * matrix_size, p.segment_vectors + border * vector_size);
      }
    }
    if constexpr (T::STAGES == 1) {
      __syncthreads();  // B, X and the record are free
      if (T::ROW_PASSES > 1 && !STATES_ONLY && more) load_a(chunk_at(step + 1), 0);
      if (more) load_rest(chunk_at(step + 1), 0);
      device::cp_async_commit();
    }
  }
  if (STATES_ONLY) return;
  if (W::DELTA && chunks > 0) {
    __syncthreads();
    store_row_dots(at, chunk_at(steps.end - 1));
  }
  if (steps.end == chunks) state.store(at, p.state_end, p.vector_end);
}

}  // namespace xlstm::mlstm
