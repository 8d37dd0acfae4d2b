// resident_forward.cuh - S1-S3 for one head and eight rows per block: all steps in one launch, R on chip, one barrier per step.
//
//   raw = x_t + b + R h_{t-1}      resident_product.cuh; h as Element in shared memory, double buffered
//   c_t, n_t, m_t, h_t             cell.cuh, in float32 registers of the thread that holds the unit and the row
//
// Block: head = blockIdx.x % NH, rows 8 * (blockIdx.x / NH) and on.  A thread owns i, f, z, o of P units for two rows.
//
// Order: the barrier at the end of step t publishes h_t (buffer (t + 1) % 2) and lies after every read of h_{t-1}, whose
//   buffer is overwritten in step t + 1.  x_t is requested STAGES steps ahead with cp.async into slot t % STAGES; the wait
//   before the barrier of step t - 2 lets x_t land, every thread takes its own x_t during step t - 1, and step t requests
//   x_{t+STAGES} into the slot.
//
// Rows of different lengths (cu_seqlens): a row that has ended goes on with x = 0 and stores nothing; its final state is written
//   at its last step.  A reset makes h_{t-1} zero in shared memory and assigns the fresh state; it is marked for backward by the
//   sign of sf.  Flags come from global memory three steps ahead, through registers of eight threads and a ring of four slots;
//   without RESETS the kernel carries nothing of this.
// Shared memory: h and x of PITCH elements per row (bank conflicts: none), for float32 R too.
// Precision: sums, gates and states float32; h is rounded to Element where it enters R and the output, h_last is not.
#pragma once
#include "device/async_copy.cuh"
#include "device/launch.cuh"
#include "slstm/cell.cuh"
#include "slstm/resident_product.cuh"
#include "slstm/sequence_rows.cuh"

namespace xlstm::slstm {

template <class Element_, int DH_, int P_, int STAGES_>
struct ForwardTile {
  using Element = Element_;
  static constexpr bool FLOAT32 = sizeof(Element) == 4;
  using Product = std::conditional_t<FLOAT32, FmaForwardProduct<DH_>,
                                     TensorForwardProduct<std::conditional_t<FLOAT32, __half, Element>, DH_, P_>>;
  static constexpr int DH = DH_, P = P_, STAGES = STAGES_, PITCH = Product::PITCH;
  static constexpr int WARPS = DH / (8 * P), THREADS = 32 * WARPS;
  static constexpr int CHUNK = 16 / int(sizeof(Element)), CHUNKS = DH / CHUNK;  // of a row of x: elements, number
  static constexpr int GATES_AT_ONCE = THREADS / (CHUNKS * kTileRows), COPIES = 4 / GATES_AT_ONCE;
  static_assert(THREADS == GATES_AT_ONCE * CHUNKS * kTileRows && COPIES * GATES_AT_ONCE == 4, "threads copy whole rows of x");
  static_assert(STAGES >= 3, "x of step t + 2 lands while x of step t + STAGES is requested");
  static_assert(!FLOAT32 || P == 1, "one float32 unit fills a register");

  struct Shared {
    Element h[2][kTileRows][PITCH];
    Element x[STAGES][4][kTileRows][PITCH];
    uint8_t fresh[4][kTileRows];
    typename Product::Shared product;
  };
};

template <class T, bool SAVE, bool RESETS>
__global__ void __launch_bounds__(T::THREADS, 1) resident_forward_kernel(const KernelForward p) {
  using Element = typename T::Element;
  using Word = UnitWord<Element, T::P>;
  using Tails = TailWords<Element>;
  constexpr int P = T::P, STAGES = T::STAGES, TAIL_WORDS = P * Tails::WORDS;
  auto& smem = *device::dynamic_shared<typename T::Shared>();
  const int tid = int(threadIdx.x), lane = tid % 32, warp = int(device::warp_id()), NH = int(p.shape.NH), DH = int(p.shape.DH);
  const int head = int(blockIdx.x) % NH, H = NH * DH;
  const int64_t first_row = int64_t(blockIdx.x) / NH * kTileRows;
  const int steps = longest(p.shape, first_row, kTileRows);

  typename T::Product product;
  product.load(smem.product, p, head, warp, lane);

  // ---- what this thread's cells are: units unit .. unit + P - 1 of rows pair, pair + 1 of the tile
  const int pair = device::c_coordinate(lane, 0).column, unit = P * (8 * warp + device::c_coordinate(lane, 0).row);
  const bool real_unit = unit < DH;
  int length[2];    // of the row, 0 where nothing is to be stored
  int64_t next[2];  // element of h that the next store goes to; tails and cells lie at 4 and 2 times that
  float bias[P][4];
#pragma unroll
  for (int u = 0; u < P; ++u) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) bias[u][gate] = p.b && real_unit ? p.b[(gate * NH + head) * DH + unit + u] : 0.0f;
  }

  CellState<float> state[P][2];
  uint32_t h_word[2], tails[2][TAIL_WORDS];  // results of the last step; stored during the next one
  const auto store_final = [&](int e, const float (&h)[P]) {
    const int64_t at = ((first_row + pair + e) * NH + head) * DH + unit;
#pragma unroll
    for (int u = 0; u < P; ++u) {
      p.h_last[at + u] = h[u], p.c_last[at + u] = state[u][e].c, p.n_last[at + u] = state[u][e].n;
      p.m_last[at + u] = returned_m(state[u][e]);
    }
  };
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t row = first_row + pair + e, at = (row * NH + head) * DH + unit;
    const SequenceRow steps_of = sequence_row(p.shape, row);
    const bool given = p.h0 && row < p.shape.B && real_unit;
    length[e] = real_unit ? steps_of.length : 0;
    next[e] = (steps_of.batch * p.shape.S + steps_of.first) * H + head * DH + unit;
    float h[P];
#pragma unroll
    for (int u = 0; u < P; ++u) {
      h[u] = given ? p.h0[at + u] : 0.0f;
      state[u][e] = given ? cell_state(p.c0[at + u], p.n0[at + u], p.m0[at + u]) : cell_state(0.0f, 0.0f, 0.0f);
    }
    if (row < p.shape.B && real_unit && length[e] == 0) {  // no steps: the state passes through
      store_final(e, h);
#pragma unroll
      for (int u = 0; u < P; ++u) p.m_last[at + u] = given ? p.m0[at + u] : 0.0f;
    }
    h_word[e] = Word::pack(h);
  }

  if (steps == 0) return;  // of the whole block; the tensors may be empty

  // ---- what this thread copies of x: 16 bytes of one row, for COPIES gates.  Rows in the order 0 4 1 5 2 6 3 7, so that eight
  // lanes which straddle two rows still meet every bank once.
  const int column = tid % T::CHUNKS * T::CHUNK, slot = tid / T::CHUNKS % kTileRows, gate = tid / (T::CHUNKS * kTileRows);
  const int copy_row = slot % 2 * 4 + slot / 2;
  const SequenceRow copied = sequence_row(p.shape, first_row + copy_row);
  const int copy_length = column < DH ? copied.length : 0;
  const Element* x = static_cast<const Element*>(p.x.data) + copied.batch * p.x.batch + copied.first * p.x.step +
                     gate * p.x_gate_stride + head * p.x.head + column;
  const auto request_x = [&](int t) {
#pragma unroll
    for (int c = 0; c < T::COPIES; ++c)
      device::cp_async<16>(&smem.x[t % STAGES][gate + c * T::GATES_AT_ONCE][copy_row][column],
                           x + c * T::GATES_AT_ONCE * p.x_gate_stride, t < copy_length ? 16 : 0);
    x += p.x.step;
    device::cp_async_commit();
  };
  uint32_t x_word[4][2];
  const auto take_x = [&](int t) {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
#pragma unroll
      for (int e = 0; e < 2; ++e) x_word[g][e] = Word::load(&smem.x[t % STAGES][g][pair + e][unit]);
    }
  };

  // ---- resets: thread r < 8 of the block fetches the flags of row r
  const SequenceRow flagged = sequence_row(p.shape, first_row + tid % kTileRows);
  const bool fetches_resets = RESETS && tid < kTileRows;
  const auto reset_at = [&](int t) {
    return t < flagged.length ? reset_of_first_step(p.shape, flagged)[t * p.shape.reset.step] : uint8_t(0);
  };
  uint8_t reset_in_flight = 0;
  if (fetches_resets) {
    smem.fresh[0][tid] = reset_at(0), smem.fresh[1][tid] = reset_at(1);
    reset_in_flight = reset_at(2);
  }

  // ---- the first h, the first x
  const auto put_h = [&](int t, uint32_t fresh) {  // the h that enters step t
#pragma unroll
    for (int e = 0; e < 2; ++e) Word::store(&smem.h[t % 2][pair + e][unit], fresh >> (8 * e) & 0xff ? 0 : h_word[e]);
  };
#pragma unroll
  for (int t = 0; t < STAGES; ++t) request_x(t);
  device::cp_async_wait<STAGES - 2>();
  __syncthreads();                                 // x of steps 0 and 1, the flags and R are there
  const auto resets_of = [&](int t) -> uint32_t {  // of this thread's two rows, one byte each
    return RESETS ? device::load_word<uint16_t>(&smem.fresh[t % 4][pair]) : 0;
  };
  uint32_t fresh = resets_of(0);
  put_h(0, fresh);
  take_x(0);
  __syncthreads();  // slot 0 of x is free

  const auto store_last_step = [&](int t) {  // h, tails and c, n of step t - 1
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (t <= 0 || t > length[e]) continue;
      Word::store(static_cast<Element*>(p.h) + next[e], h_word[e]);
      if constexpr (SAVE) {
        store_words(static_cast<typename Tails::Tail*>(p.saved_tails) + 4 * next[e], tails[e]);
        uint32_t cells[2 * P];
#pragma unroll
        for (int u = 0; u < P; ++u)
          cells[2 * u] = __float_as_uint(state[u][e].c), cells[2 * u + 1] = __float_as_uint(state[u][e].n);
        store_words(p.saved_cells + 2 * next[e], cells);
      }
      next[e] += H;
    }
  };

  for (int t = 0; t < steps; ++t) {
    float input[P][2][4], sums[P][2][4];  // see TensorForwardProduct
#pragma unroll
    for (int u = 0; u < P; ++u) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        input[u][i / 4][i % 4] = bias[u][i / 2] + Word::unit(x_word[i / 2][i % 2], u);
        // A sum that starts at a large gate rounds every addend to the gate's last place; h in 16 bits is no better than that.
        sums[u][i / 4][i % 4] = T::FLOAT32 ? 0.0f : input[u][i / 4][i % 4];
      }
    }
    product.multiply(sums, smem.product, &smem.h[t % 2][0][0], warp, lane, [&](int work) {
      if (work == 0) store_last_step(t);
      if (work == 1) take_x(t + 1);  // past the end: values that nobody uses
      if (work == 2) {
        request_x(t + STAGES);
        if (fetches_resets) smem.fresh[(t + 2) % 4][tid] = reset_in_flight, reset_in_flight = reset_at(t + 3);
      }
    });

    if constexpr (T::FLOAT32) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[0][i / 4][i % 4] += input[0][i / 4][i % 4];
    }
    if (fresh) {
#pragma unroll
      for (int i = 0; i < 2 * P; ++i)
        if (fresh >> (8 * (i % 2)) & 0xff) state[i / 2][i % 2] = cell_state(0.0f, 0.0f, 0.0f);
    }
    float h[2][P];
    const auto cells = [&](auto forget_gate) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int u = 0; u < P; ++u) {
          CellSaved<float> saved;
          h[e][u] = cell_forward<decltype(forget_gate)::value>(sums[u][0][e], sums[u][0][2 + e], sums[u][1][e], sums[u][1][2 + e],
                                                               state[u][e], saved);
          if constexpr (SAVE) Tails::pack(&tails[e][u * Tails::WORDS], saved.d, saved.sf, saved.u, saved.w);
        }
      }
    };
    if (p.shape.forget_gate == ForgetGate::kSigmoid)
      cells(std::integral_constant<ForgetGate, ForgetGate::kSigmoid>{});
    else
      cells(std::integral_constant<ForgetGate, ForgetGate::kExp>{});
    if constexpr (SAVE)
      if (fresh) {  // sf has a sign only here
#pragma unroll
        for (int i = 0; i < 2 * P; ++i)
          if (fresh >> (8 * (i % 2)) & 0xff) tails[i % 2][i / 2 * Tails::WORDS + (T::FLOAT32 ? 1 : 0)] |= 0x80000000u;
      }
#pragma unroll
    for (int e = 0; e < 2; ++e) h_word[e] = Word::pack(h[e]);
    fresh = resets_of(t + 1);
    put_h(t + 1, fresh);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (t + 1 == length[e]) store_final(e, h[e]);
    device::cp_async_wait<STAGES - 2>();  // x of step t + 2
    __syncthreads();                      // h of step t is there, everyone has left step t
  }
  store_last_step(steps);
  device::cp_async_wait<0>();  // requests past the end, which copy nothing, still write zeros to shared memory
}

template <class T>
void launch_resident_forward(const char* name, const KernelForward& p, Stream stream) {
  device::LaunchConfig config;
  config.grid = dim3(tiles_of_rows(p.shape));
  config.block = dim3(T::THREADS);
  config.shared_bytes = sizeof(typename T::Shared);
  config.stream = stream.handle;
  config.device = stream.device;
  if (p.saved_tails)
    device::launch(config, name,
                   p.shape.reset.data ? resident_forward_kernel<T, true, true> : resident_forward_kernel<T, true, false>, p);
  else
    device::launch(config, name,
                   p.shape.reset.data ? resident_forward_kernel<T, false, true> : resident_forward_kernel<T, false, false>, p);
}

// 16-bit elements: every head dim that a tile holds.
template <class Element>
void launch_resident_forward16(const char* name, const KernelForward& p, Stream stream) {
  if (p.shape.DH <= 32) return launch_resident_forward<ForwardTile<Element, 32, 1, 4>>(name, p, stream);
  if (p.shape.DH <= 64) return launch_resident_forward<ForwardTile<Element, 64, 2, 4>>(name, p, stream);
  if (p.shape.DH <= 96) return launch_resident_forward<ForwardTile<Element, 96, 2, 4>>(name, p, stream);
  launch_resident_forward<ForwardTile<Element, 128, 2, 4>>(name, p, stream);
}

}  // namespace xlstm::slstm
