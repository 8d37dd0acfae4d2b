// resident/forward.cu - S1-S3 for one head and eight rows per block: all steps in one launch, R on chip, one barrier per step.
//
//   raw = x_t + b + R h_{t-1}      product.cuh; h as Element in shared memory, double buffered
//   c_t, n_t, m_t, h_t             cell.cuh, in float32 registers of the thread that holds the unit and the row
//
// Block: head = blockIdx.x % NH, rows 8 * (blockIdx.x / NH) and on.  A thread owns i, f, z, o of UNITS units for two rows.
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
#include "device/async_copy.cuh"
#include "slstm/cell.cuh"
#include "slstm/resident/place.cuh"
#include "slstm/resident/product.cuh"

namespace xlstm::slstm {

template <class Element_, int DH_, int UNITS_, int STAGES_>
struct ForwardTile {
  using Element = Element_;
  static constexpr bool FLOAT32 = sizeof(Element) == 4;
  using Product = std::conditional_t<FLOAT32, FmaForwardProduct<DH_>,
                                     TensorForwardProduct<std::conditional_t<FLOAT32, __half, Element>, DH_, UNITS_>>;
  static constexpr int DH = DH_, UNITS = UNITS_, STAGES = STAGES_, PITCH = Product::PITCH;
  static constexpr int WARPS = DH / (8 * UNITS), THREADS = 32 * WARPS;
  static constexpr int CHUNK = 16 / int(sizeof(Element)), CHUNKS = DH / CHUNK;  // of a row of x: elements, number
  static constexpr int GATES_AT_ONCE = THREADS / (CHUNKS * kTileRows), COPIES = 4 / GATES_AT_ONCE;
  static_assert(THREADS == GATES_AT_ONCE * CHUNKS * kTileRows && COPIES * GATES_AT_ONCE == 4, "threads copy whole rows of x");
  static_assert(STAGES >= 3, "x of step t + 2 lands while x of step t + STAGES is requested");
  static_assert(!FLOAT32 || UNITS == 1, "one float32 unit fills a register");

  struct Shared {
    Element h[2][kTileRows][PITCH];
    Element x[STAGES][4][kTileRows][PITCH];
    uint8_t fresh[4][kTileRows];
    typename Product::Shared product;
  };
};

// What a thread copies of x: 16 bytes of one row, for COPIES gates. Rows in the order 0 4 1 5 2 6 3 7, so that eight lanes which
// straddle two rows still meet every bank once.
template <class T>
struct InputCopies {
  using Element = typename T::Element;
  int64_t gate_stride, step;
  int gate, row, column;
  int length;        // 0 where there is nothing to copy
  const Element* x;  // of the step that is requested next

  XLSTM_DEVICE InputCopies(const KernelForward& p, const ResidentPlace<T::UNITS>& place)
      : gate_stride(p.x_gate_stride), step(p.x.step) {
    const int slot = place.tid / T::CHUNKS % kTileRows;
    column = place.tid % T::CHUNKS * T::CHUNK;
    gate = place.tid / (T::CHUNKS * kTileRows);
    row = slot % 2 * 4 + slot / 2;
    const SequenceRow copied = sequence_row(p.shape, place.first_row + row);
    length = column < place.DH ? copied.length : 0;
    x = static_cast<const Element*>(p.x.data) + copied.batch * p.x.batch + copied.first * p.x.step + gate * gate_stride +
        place.head * p.x.head + column;
  }
  XLSTM_DEVICE void request(typename T::Shared& smem, int t) {
#pragma unroll
    for (int c = 0; c < T::COPIES; ++c)
      device::cp_async<16>(&smem.x[t % T::STAGES][gate + c * T::GATES_AT_ONCE][row][column],
                           x + c * T::GATES_AT_ONCE * gate_stride, t < length ? 16 : 0);
    x += step;
    device::cp_async_commit();
  }
};

// The flags of resets: thread r < 8 of the block fetches those of row r.
template <class T, bool RESETS>
struct Resets {
  const KernelForward& p;
  const SequenceRow flagged;
  const bool fetches;
  const int tid, pair;
  uint8_t in_flight = 0;

  XLSTM_DEVICE Resets(const KernelForward& params, const ResidentPlace<T::UNITS>& place)
      : p(params),
        flagged(sequence_row(p.shape, place.first_row + place.tid % kTileRows)),
        fetches(RESETS && place.tid < kTileRows),
        tid(place.tid),
        pair(place.pair) {}

  XLSTM_DEVICE uint8_t flag(int t) const {
    return t < flagged.length ? reset_of_first_step(p.shape, flagged)[t * p.shape.reset.step] : uint8_t(0);
  }
  XLSTM_DEVICE void begin(typename T::Shared& smem) {
    if (!fetches) return;
    smem.fresh[0][tid] = flag(0);
    smem.fresh[1][tid] = flag(1);
    in_flight = flag(2);
  }
  XLSTM_DEVICE void fetch(typename T::Shared& smem, int t) {  // in step t
    if (!fetches) return;
    smem.fresh[(t + 2) % 4][tid] = in_flight;
    in_flight = flag(t + 3);
  }
  // Of the thread's two rows, one byte each.
  XLSTM_DEVICE uint32_t of_rows(const typename T::Shared& smem, int t) const {
    return RESETS ? device::load_word<uint16_t>(&smem.fresh[t % 4][pair]) : 0;
  }
};
XLSTM_DEVICE bool is_fresh(uint32_t flags, int e) { return flags >> (8 * e) & 0xff; }

// The launch of one thread: its cells, and what it does in a step.
template <class T, bool SAVE, bool RESETS>
struct ResidentForward {
  using Element = typename T::Element;
  using Word = UnitWord<Element, T::UNITS>;
  using Tails = TailWords<Element>;
  static constexpr int UNITS = T::UNITS, STAGES = T::STAGES;

  const KernelForward& p;
  typename T::Shared& smem;
  const ResidentPlace<UNITS>& place;
  typename T::Product product;
  float bias[UNITS][4];
  CellState<float> state[UNITS][2];
  int length[2];                                       // of the row, 0 where nothing is to be stored
  int64_t next[2];                                     // element of h that the next store goes to; tails, cells: 4, 2 times that
  uint32_t h_word[2], tails[2][UNITS * Tails::WORDS];  // results of the last step; stored during the next one
  uint32_t x_word[4][2];                               // the input of the step at hand
  uint32_t fresh = 0;                                  // is_fresh(fresh, e): row e begins afresh in the step at hand

  XLSTM_DEVICE ResidentForward(const KernelForward& params, typename T::Shared& shared, const ResidentPlace<UNITS>& at)
      : p(params), smem(shared), place(at) {
    product.load(smem.product, p, place.head, place.warp, place.lane);
    load_bias();
#pragma unroll
    for (int e = 0; e < 2; ++e) begin_row(e);
  }

  XLSTM_DEVICE void load_bias() {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        bias[u][gate] = p.b && place.real_unit ? p.b[(gate * place.NH + place.head) * place.DH + place.unit + u] : 0.0f;
    }
  }

  XLSTM_DEVICE void begin_row(int e) {
    const int64_t row = place.row(e), at = place.state_at(e);
    const SequenceRow steps_of = sequence_row(p.shape, row);
    const bool given = p.h0 && row < p.shape.B && place.real_unit;
    length[e] = place.real_unit ? steps_of.length : 0;
    next[e] = (steps_of.batch * p.shape.S + steps_of.first) * place.H + place.head * place.DH + place.unit;
    float h[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      h[u] = given ? p.h0[at + u] : 0.0f;
      state[u][e] = given ? cell_state(p.c0[at + u], p.n0[at + u], p.m0[at + u]) : cell_state(0.0f, 0.0f, 0.0f);
    }
    if (row < p.shape.B && place.real_unit && length[e] == 0) {  // no steps: the state passes through
      store_final(e, h);
#pragma unroll
      for (int u = 0; u < UNITS; ++u) p.m_last[at + u] = given ? p.m0[at + u] : 0.0f;
    }
    h_word[e] = Word::pack(h);
  }

  XLSTM_DEVICE void store_final(int e, const float (&h)[UNITS]) {
    const int64_t at = place.state_at(e);
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      p.h_last[at + u] = h[u];
      p.c_last[at + u] = state[u][e].c;
      p.n_last[at + u] = state[u][e].n;
      p.m_last[at + u] = returned_m(state[u][e]);
    }
  }

  XLSTM_DEVICE void take_x(int t) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
      for (int e = 0; e < 2; ++e) x_word[gate][e] = Word::load(&smem.x[t % STAGES][gate][place.pair + e][place.unit]);
    }
  }

  XLSTM_DEVICE void put_h(int t) {  // the h that enters step t
#pragma unroll
    for (int e = 0; e < 2; ++e) Word::store(&smem.h[t % 2][place.pair + e][place.unit], is_fresh(fresh, e) ? 0 : h_word[e]);
  }

  XLSTM_DEVICE void store_last_step(int t) {  // h, tails and c, n of step t - 1
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (t <= 0 || t > length[e]) continue;
      Word::store(static_cast<Element*>(p.h) + next[e], h_word[e]);
      if constexpr (SAVE) {
        store_words(static_cast<typename Tails::Tail*>(p.saved_tails) + 4 * next[e], tails[e]);
        uint32_t cells[2 * UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
          cells[2 * u] = __float_as_uint(state[u][e].c);
          cells[2 * u + 1] = __float_as_uint(state[u][e].n);
        }
        store_words(p.saved_cells + 2 * next[e], cells);
      }
      next[e] += place.H;
    }
  }

  XLSTM_DEVICE void run() {
    InputCopies<T> copies(p, place);
    Resets<T, RESETS> resets(p, place);
    resets.begin(smem);
#pragma unroll
    for (int t = 0; t < STAGES; ++t) copies.request(smem, t);
    device::cp_async_wait<STAGES - 2>();
    __syncthreads();  // x of steps 0 and 1, the flags and R are there
    fresh = resets.of_rows(smem, 0);
    put_h(0);
    take_x(0);
    __syncthreads();  // slot 0 of x is free
    for (int t = 0; t < place.steps; ++t) {
      step(t, copies, resets);
      device::cp_async_wait<STAGES - 2>();  // x of step t + 2
      __syncthreads();                      // h of step t is there, everyone has left step t
    }
    store_last_step(place.steps);
    device::cp_async_wait<0>();  // requests past the end, which copy nothing, still write zeros to shared memory
  }

  XLSTM_DEVICE void step(int t, InputCopies<T>& copies, Resets<T, RESETS>& resets) {
    float sums[UNITS][2][4];  // see TensorForwardProduct
    multiply(sums, t, copies, resets);
    if (fresh) begin_afresh();
    float h[2][UNITS];
    with_forget_gate(p.shape.forget_gate, [&](auto gate) { cells<decltype(gate)::value>(h, sums); });
    if constexpr (SAVE) {
      if (fresh) mark_resets();
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) h_word[e] = Word::pack(h[e]);
    fresh = resets.of_rows(smem, t + 1);
    put_h(t + 1);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (t + 1 == length[e]) store_final(e, h[e]);
    }
  }

  // x + b + R h. A sum that starts at a large gate rounds every addend to the gate's last place; h in 16 bits is no better than
  // that, in float32 the input is added last.
  XLSTM_DEVICE void multiply(float (&sums)[UNITS][2][4], int t, InputCopies<T>& copies, Resets<T, RESETS>& resets) {
    float input[UNITS][2][4];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        input[u][i / 4][i % 4] = bias[u][i / 2] + Word::unit(x_word[i / 2][i % 2], u);
        sums[u][i / 4][i % 4] = T::FLOAT32 ? 0.0f : input[u][i / 4][i % 4];
      }
    }
    product.multiply(sums, smem.product, &smem.h[t % 2][0][0], place.warp, place.lane, [&](int work) {
      if (work == 0) store_last_step(t);
      if (work == 1) take_x(t + 1);  // past the end: values that nobody uses
      if (work == 2) {
        copies.request(smem, t + STAGES);
        resets.fetch(smem, t);
      }
    });
    if constexpr (T::FLOAT32) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[0][i / 4][i % 4] += input[0][i / 4][i % 4];
    }
  }

  XLSTM_DEVICE void begin_afresh() {
#pragma unroll
    for (int i = 0; i < 2 * UNITS; ++i) {
      if (is_fresh(fresh, i % 2)) state[i / 2][i % 2] = cell_state(0.0f, 0.0f, 0.0f);
    }
  }

  template <ForgetGate forget_gate>
  XLSTM_DEVICE void cells(float (&h)[2][UNITS], const float (&raw)[UNITS][2][4]) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int u = 0; u < UNITS; ++u) {
        CellSaved<float> saved;
        h[e][u] = cell_forward<forget_gate>(raw[u][0][e], raw[u][0][2 + e], raw[u][1][e], raw[u][1][2 + e], state[u][e], saved);
        if constexpr (SAVE) Tails::pack(&tails[e][u * Tails::WORDS], saved.d, saved.sf, saved.u, saved.w);
      }
    }
  }

  XLSTM_DEVICE void mark_resets() {  // sf has a sign only here
#pragma unroll
    for (int i = 0; i < 2 * UNITS; ++i) {
      if (is_fresh(fresh, i % 2)) tails[i % 2][i / 2 * Tails::WORDS + Tails::SF_WORD] |= 0x80000000u;
    }
  }
};

template <class T, bool SAVE, bool RESETS>
__global__ void __launch_bounds__(T::THREADS, 1) resident_forward_kernel(const KernelForward p) {
  const ResidentPlace<T::UNITS> place(p.shape);
  ResidentForward<T, SAVE, RESETS> thread(p, *device::dynamic_shared<typename T::Shared>(), place);
  if (place.steps > 0) thread.run();  // of the whole block; without steps the tensors may be empty
}

namespace {

static_assert(sizeof(ForwardTile<float, 64, 1, 3>::Shared) <= 99 * 1024, "choice.cu gives head dim 64 to every GPU");
static_assert(sizeof(ForwardTile<float, 96, 1, 3>::Shared) <= 200 * 1024, "choice.cu gives head dim 96 to GPUs with 200 KiB");

template <class T>
auto kernel_for(const KernelForward& p) {
  const bool resets = p.shape.reset.data;
  if (p.saved_tails) return resets ? resident_forward_kernel<T, true, true> : resident_forward_kernel<T, true, false>;
  return resets ? resident_forward_kernel<T, false, true> : resident_forward_kernel<T, false, false>;
}

template <class E>
void launch_element(const KernelForward& p, Stream stream) {
  static const std::string name = std::string("slstm_resident_forward<") + kElementName<E> + ">";
  const auto launch = [&](auto tile) {
    using T = typename decltype(tile)::type;
    launch_resident<T>(name, kernel_for<T>(p), p, stream);
  };
  if constexpr (sizeof(E) == 4)
    with_tile<ForwardTile<E, 32, 1, 4>, ForwardTile<E, 64, 1, 3>, ForwardTile<E, 96, 1, 3>>(p.shape.DH, launch);
  else
    with_tile<ForwardTile<E, 32, 1, 4>, ForwardTile<E, 64, 2, 4>, ForwardTile<E, 96, 2, 4>, ForwardTile<E, 128, 2, 4>>(p.shape.DH,
                                                                                                                       launch);
}

}  // namespace

void resident_pass(const KernelForward& p, Stream stream) {
  with_element(p.element, [&](auto type) { launch_element<typename decltype(type)::type>(p, stream); });
}

}  // namespace xlstm::slstm
