// resident/backward.cu - S4 for one head and eight rows per block: all steps in one launch, R on chip, one barrier per step.
//
//   dy = dh_t + dh_rec;  dc, dn, dg      cell.cuh, float32 registers of the thread that holds the unit and the row
//   dh_rec = R^T dg                      product.cuh; dg as Element in shared memory, double buffered
//   dm0 = c0 dc0 + n0 dn0                S5
//   db = sum of dx                       float32 registers, over the tile's rows and steps
//
// Iteration i is step length - 1 - i of every row, whatever its length: all rows begin with the gradients of their final states.
// A row that is through goes on with zeros (zero-filled copies); its dh0, dc0, dn0, dm0 are written when its first step is done.
//
// Order: the barrier of iteration i publishes dg (buffer i % 2) and lies after every read of dg of iteration i - 2.  Tails, dh,
//   c and n before the step are requested STAGES iterations ahead with cp.async, into slots that only this thread reads: no
//   barrier.
//
// dg enters the product zeroed at a reset (h_{t-1} did not enter forward's), dx gets it as it is.  d is -inf there, so f' = 0 and
//   nothing flows into c, n before the reset.
// Shared memory: dg, the slots, for float32 R too.
// Precision: everything float32; dg is rounded to Element where it enters R^T, dx and db.  dR is left to one matrix product after
//   the launch.
#include "device/async_copy.cuh"
#include "slstm/cell.cuh"
#include "slstm/resident/place.cuh"
#include "slstm/resident/product.cuh"

namespace xlstm::slstm {

template <class Element_, int DH_, int STAGES_>
struct BackwardTile {
  using Element = Element_;
  static constexpr bool FLOAT32 = sizeof(Element) == 4;
  using Product = std::conditional_t<FLOAT32, FmaBackwardProduct<DH_>,
                                     TensorBackwardProduct<std::conditional_t<FLOAT32, __half, Element>, DH_>>;
  static constexpr int DH = DH_, STAGES = STAGES_, PITCH = Product::PITCH, UNITS = Product::UNITS;
  static constexpr int WARPS = DH / (8 * UNITS), THREADS = 32 * WARPS;
  static_assert(UNITS * 4 * sizeof(typename TailWords<Element>::Tail) == 16, "the tails of a thread are one 16-byte copy");

  struct Slots {  // one per thread
    uint4 tails[2][THREADS];
    uint32_t cells[2][THREADS][2 * UNITS];
    uint32_t dh[2][THREADS];
  };
  struct Shared {
    Element dg[2][kTileRows][PITCH];
    Slots slots[STAGES];
    typename Product::Shared product;
  };
};

// The launch of one thread: its cells, and what it does in an iteration.
template <class T>
struct ResidentBackward {
  using Element = typename T::Element;
  using Word = UnitWord<Element, T::UNITS>;
  using Tails = TailWords<Element>;
  static constexpr int UNITS = T::UNITS, STAGES = T::STAGES;

  const KernelBackward& p;
  typename T::Shared& smem;
  const ResidentPlace<UNITS>& place;
  typename T::Product product;
  int length[2];
  int64_t fetched[2], dh_at[2];  // element of the step that is requested next, in dx / 4 and in dh
  float dh_rec[2][UNITS], dc[2][UNITS], dn[2][UNITS];
  float c[2][UNITS], n[2][UNITS];  // after the step at hand
  float db[UNITS][4] = {};
  // of the step at hand, from `prepare`
  CellCoefficients<float> coefficients[2][UNITS];
  uint32_t dh_word[2];
  bool fresh[2];

  XLSTM_DEVICE ResidentBackward(const KernelBackward& params, typename T::Shared& shared, const ResidentPlace<UNITS>& at)
      : p(params), smem(shared), place(at) {
    product.load(smem.product, p, place.head, place.warp, place.lane);
#pragma unroll
    for (int e = 0; e < 2; ++e) begin_row(e);
  }

  XLSTM_DEVICE void begin_row(int e) {
    const int64_t row = place.row(e), at = place.state_at(e);
    const SequenceRow steps_of = sequence_row(p.shape, row);
    const bool real = row < p.shape.B && place.real_unit;
    const int64_t last = steps_of.first + steps_of.length - 1;
    length[e] = place.real_unit ? steps_of.length : 0;
    fetched[e] = (steps_of.batch * p.shape.S + last) * place.H + place.head * place.DH + place.unit;
    dh_at[e] = steps_of.batch * p.dh.batch + last * p.dh.step + place.head * p.dh.head + place.unit;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      dh_rec[e][u] = p.dh_last && real ? p.dh_last[at + u] : 0.0f;
      dc[e][u] = p.dc_last && real ? p.dc_last[at + u] : 0.0f;
      dn[e][u] = p.dn_last && real ? p.dn_last[at + u] : 0.0f;
      c[e][u] = length[e] > 0 ? p.saved_cells[2 * (fetched[e] + u)] : 0.0f;
      n[e][u] = length[e] > 0 ? p.saved_cells[2 * (fetched[e] + u) + 1] : 0.0f;
    }
    if (real && length[e] == 0) store_first(e);  // no steps: the gradients pass through
  }

  XLSTM_DEVICE void store_first(int e) const {
    const int64_t at = place.state_at(e);
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const float c0 = p.c0 ? p.c0[at + u] : 0.0f, n0 = p.n0 ? p.n0[at + u] : 0.0f;
      p.dh0[at + u] = dh_rec[e][u];
      p.dc0[at + u] = dc[e][u];
      p.dn0[at + u] = dn[e][u];
      p.dm0[at + u] = c0 * dc[e][u] + n0 * dn[e][u];
    }
  }

  XLSTM_DEVICE void store_db() const {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        float sum = db[u][gate];  // the four lanes of a unit hold two rows each
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) sum += __shfl_xor_sync(device::kAllLanes, sum, offset);
        if (place.pair == 0 && place.real_unit)
          p.db_parts[(place.first_row / kTileRows * 4 + gate) * place.H + place.head * place.DH + place.unit + u] = sum;
      }
    }
  }

  // Tails, dh, c and n before the step of iteration i.
  XLSTM_DEVICE void request(int i) {
    auto& slots = smem.slots[i % STAGES];
    const auto* dh = static_cast<const Element*>(p.dh.data ? p.dh.data : p.saved_tails);  // nothing is read through the second
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool more = i < length[e], before = i + 1 < length[e];
      device::cp_async<16>(&slots.tails[e][place.tid], static_cast<const typename Tails::Tail*>(p.saved_tails) + 4 * fetched[e],
                           more ? 16 : 0);
      device::cp_async<8 * UNITS>(&slots.cells[e][place.tid], p.saved_cells + 2 * (fetched[e] - place.H), before ? 8 * UNITS : 0);
      device::cp_async<4>(&slots.dh[e][place.tid], dh + dh_at[e], more && p.dh.data ? 4 : 0);
      fetched[e] -= place.H;
      dh_at[e] -= p.dh.step;
    }
    device::cp_async_commit();
  }

  XLSTM_DEVICE void put_given(int i) {  // the given c0, n0 into the slot of iteration i, where it is a row's first step
    if (!p.c0 || (i + 1 != length[0] && i + 1 != length[1])) return;
    for (int e = 0; e < 2; ++e) {
      if (i + 1 != length[e]) continue;
      uint32_t* cells = smem.slots[i % STAGES].cells[e][place.tid];
      for (int u = 0; u < UNITS; ++u) {
        cells[2 * u] = __float_as_uint(p.c0[place.state_at(e) + u]);
        cells[2 * u + 1] = __float_as_uint(p.n0[place.state_at(e) + u]);
      }
    }
  }

  XLSTM_DEVICE void prepare(int i, int e) {  // the coefficients of iteration i, which need no gradient
    auto& slots = smem.slots[i % STAGES];
    uint32_t tails[4], cells[2 * UNITS];
    load_words(tails, &slots.tails[e][place.tid]);
    load_words(cells, &slots.cells[e][place.tid]);
    dh_word[e] = device::load_word<uint32_t>(&slots.dh[e][place.tid]);
    fresh[e] = int32_t(tails[Tails::SF_WORD]) < 0;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const float c_prev = __uint_as_float(cells[2 * u]), n_prev = __uint_as_float(cells[2 * u + 1]);
      CellSaved<float> saved;
      Tails::unpack(tails + u * Tails::WORDS, saved.d, saved.sf, saved.u, saved.w);
      coefficients[e][u] = cell_coefficients(saved, c[e][u], n[e][u], c_prev, n_prev);
      c[e][u] = c_prev;
      n[e][u] = n_prev;
    }
  }

  XLSTM_DEVICE void run() {
#pragma unroll
    for (int i = 0; i < STAGES; ++i) request(i);
    device::cp_async_wait<STAGES - 1>();
    put_given(0);
    prepare(0, 0);
    prepare(0, 1);
    for (int i = 0; i < place.steps; ++i) step(i);
    store_db();
    device::cp_async_wait<0>();  // requests past the first step, which copy nothing, still write zeros to shared memory
  }

  XLSTM_DEVICE void step(int i) {
    Element* const dg = &smem.dg[i % 2][0][0];
    uint32_t words[2][4];  // dg: of 16 bits {unit 0: if, zo, unit 1: if, zo}, of float32 {i, f, z, o}
#pragma unroll
    for (int e = 0; e < 2; ++e) cell(e, words[e], dg + (place.pair + e) * T::PITCH + 4 * place.unit);
    __syncthreads();  // dg of iteration i is there, everyone has left the product of iteration i - 1
    product.multiply(dh_rec, smem.product, dg, place.warp, place.lane, [&](int work) {
      if (work == 0) {
#pragma unroll
        for (int e = 0; e < 2; ++e) store_dx(i, e, words[e]);
      }
      if (work == 1) request(i + STAGES);
      if (work == 2) {
        device::cp_async_wait<STAGES - 1>();
        put_given(i + 1);
        prepare(i + 1, 0);
      }
      if (work == 3) prepare(i + 1, 1);
    });
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (i + 1 == length[e]) store_first(e);
    }
  }

  XLSTM_DEVICE void cell(int e, uint32_t (&words)[4], Element* mine) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      float dg[4];
      cell_backward(coefficients[e][u], dh_rec[e][u] + Word::unit(dh_word[e], u), dc[e][u], dn[e][u], dg);
      if constexpr (T::FLOAT32) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) words[gate] = __float_as_uint(dg[gate]);
      } else {
        words[2 * u] = device::pack<Element>(dg[0], dg[1]);
        words[2 * u + 1] = device::pack<Element>(dg[2], dg[3]);
      }
    }
    const uint32_t zeros[4] = {0, 0, 0, 0};
    if (fresh[e])
      store_words(mine, zeros);
    else
      store_words(mine, words);
  }

  XLSTM_DEVICE void store_dx(int i, int e, const uint32_t (&words)[4]) {
    if (i >= length[e]) return;
    const int64_t in_gate = place.head * place.DH + place.unit;
    // `fetched` is STAGES steps on; of dx 4 gates lie where h has one
    Element* dx = static_cast<Element*>(p.dx) + 4 * (fetched[e] + int64_t(STAGES) * place.H - in_gate) + in_gate;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      uint32_t word = words[gate];
      if constexpr (!T::FLOAT32) {
        const uint32_t first = words[gate / 2], second = words[2 + gate / 2];
        word = gate % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
      }
      Word::store(dx + gate * place.H, word);
#pragma unroll
      for (int u = 0; u < UNITS; ++u) db[u][gate] += Word::unit(word, u);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1) resident_backward_kernel(const KernelBackward p) {
  const ResidentPlace<T::UNITS> place(p.shape);
  ResidentBackward<T> thread(p, *device::dynamic_shared<typename T::Shared>(), place);
  if (place.steps == 0) return thread.store_db();  // of the whole block; the tensors may be empty
  thread.run();
}

namespace {

static_assert(sizeof(BackwardTile<float, 64, 1>::Shared) <= 99 * 1024, "choice.cu gives head dim 64 to every GPU");
static_assert(sizeof(BackwardTile<float, 96, 1>::Shared) <= 200 * 1024, "choice.cu gives head dim 96 to GPUs with 200 KiB");

template <class E>
void launch_element(const KernelBackward& p, Stream stream) {
  static const std::string name = std::string("slstm_resident_backward<") + kElementName<E> + ">";
  const auto launch = [&](auto tile) {
    using T = typename decltype(tile)::type;
    launch_resident<T>(name, resident_backward_kernel<T>, p, stream);
  };
  if constexpr (sizeof(E) == 4)
    with_tile<BackwardTile<E, 32, 3>, BackwardTile<E, 64, 1>, BackwardTile<E, 96, 1>>(p.shape.DH, launch);
  else
    with_tile<BackwardTile<E, 32, 4>, BackwardTile<E, 64, 4>, BackwardTile<E, 96, 4>, BackwardTile<E, 128, 4>>(p.shape.DH,
                                                                                                               launch);
}

}  // namespace

void resident_pass(const KernelBackward& p, Stream stream) {
  with_element(p.element, [&](auto type) { launch_element<typename decltype(type)::type>(p, stream); });
}

}  // namespace xlstm::slstm
