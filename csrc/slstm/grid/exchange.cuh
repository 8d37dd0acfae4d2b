// grid/exchange.cuh - how the blocks of one group hand h and dh to each other through L2, in one cooperative launch.
//
// Groups never wait for each other, and there is no grid-wide barrier: counters per block, which only grow (zeroed before the
// launch), and red.release / ld.acquire on them. All blocks of a launch are resident (plan.cuh), so the block that
// is waited for runs.
//
// Forward. h goes through the output itself, every element is written once: there is nothing to overwrite early.
//   owner     st h (cell warp)  ->  __syncwarp  ->  red.release.gpu counter[owner] += 1     (lane 0, once per cell warp and step)
//   receiver  ld.acquire.gpu counter[owner] >= e * cell warps  ->  __syncwarp  ->  ld h
//   The additions form one release sequence, so an acquire that reads the last of them synchronises with every cell warp's
//   release; __syncwarp carries the order from and to the other lanes. h is read with ld.relaxed.gpu: from L2, never L1.
//   Partial sums (shared memory, one buffer) are written again after the warp has also waited for its own block's counter, that
//   is after every cell warp of the block has read them: reads -> __syncwarp -> red.release -> ld.acquire -> __syncwarp ->
//   writes.
//
// Backward. The parts of dh go through a workspace with two buffers, and each buffer has a counter of its own:
// counter[owner][e % 2] counts the pieces of 16 units that arrived in exchanges e, e - 2, ...
//   sender    st part (product warp)  ->  __syncwarp  ->  red.release.gpu counter[owner][e % 2] += 1     (one per piece)
//   owner     ld.acquire.gpu counter[self][e % 2] >= (e + 1) / 2 * blocks * pieces  ->  __syncwarp  ->  ld parts
//   While an owner waits for e no piece of e + 2 can be counted: a sender has one only after it acquired e + 1, of which the
//   owner's own pieces are a part, sent after this very wait. So the count is reached by the pieces of e and of nothing else.
//   With one counter for both buffers it would not be: a fast warp's piece of e + 1 would stand in for a slow one's of e.
//   A buffer is written again two exchanges later: the owner's cell warps read exchange e - 2  ->  owner's __syncthreads  ->
//   owner's product warps red.release their pieces of e - 1, to every block  ->  the sender's cell warps acquire e - 1  ->  the
//   sender's __syncthreads  ->  its product warps write e. So no further signal is needed.
#pragma once
#include <type_traits>

#include "device/vector.cuh"
#include "device/wait.cuh"
#include "slstm/grid/counters.cuh"
#include "slstm/split/geometry.cuh"

namespace xlstm::slstm {

template <class Product>
struct GridForwardExchange {
  using Element = typename Product::Element;
  static constexpr int UNITS = Product::UNITS, CELL_WARPS = kSplitRows * UNITS / 32;
  static constexpr int OWNERS = Product::STEP > UNITS ? Product::STEP / UNITS : 1;  // of the inputs of one step
  static_assert(Product::STEP % UNITS == 0 || UNITS % Product::STEP == 0, "a step's inputs belong to whole blocks");
  static_assert(Product::STEPS * OWNERS < 32, "one lane per owner, and one for the block itself");

  static constexpr int kPartFloats = 0;  // h goes through the output

  const KernelForward& p;
  const SplitPlace& place;
  uint32_t* counters;  // of the group, [rank * kCounterPitch]

  XLSTM_DEVICE GridForwardExchange(const KernelForward& params, const SplitPlace& at, uint32_t* counters_of_group, float*)
      : p(params), place(at), counters(counters_of_group) {}

  XLSTM_DEVICE void receive(uint4 (&operand)[Product::STEPS], int e, const Product& product, int length, int64_t row_at) const {
    const int lane = product.lane, DH = int(p.shape.DH);
    const int first = product.step_index(lane / OWNERS) * Product::STEP;
    int owner = place.rank;
    if (lane < Product::STEPS * OWNERS) owner = first < DH ? (first + lane % OWNERS * UNITS) / UNITS : place.blocks;
    if (lane <= Product::STEPS * OWNERS && owner < place.blocks)
      device::wait_until([&] { return reached(counters + owner * kCounterPitch, uint32_t(e) * CELL_WARPS); });
    __syncwarp();
    const auto* h = static_cast<const Element*>(p.h) + row_at + (e - 1) * p.shape.NH * p.shape.DH;
#pragma unroll
    for (int i = 0; i < Product::STEPS; ++i) {
      operand[i] = uint4{0, 0, 0, 0};  // of a row that has ended, or does not exist
      if (e <= length && product.input(i) < DH) operand[i] = device::load_relaxed_vector<uint4>(h + product.input(i));
    }
  }
  XLSTM_DEVICE void after_barrier(int, bool) const {}
  XLSTM_DEVICE void publish(int, Element, int, int, int) const {
    __syncwarp();
    if (device::lane_id() == 0) device::add_release(counters + place.rank * kCounterPitch, 1);
  }
};

template <class Product>
struct GridBackwardExchange {
  static constexpr int UNITS = Product::UNITS, PIECES = UNITS / 16;
  static constexpr int kPartFloats = UNITS * kSplitRows;  // what one block sends another in one step
  static constexpr int64_t kMostBlocks = ceil_divide(Product::MAX_DH, UNITS);
  // The compiler keeps the address of every target over the loop: as 64-bit places they spilled on sm_100.
  static_assert(2 * kMostBlocks * kMostBlocks * kPartFloats < int64_t(1) << 31, "32 bits hold a place in the parts of a group");

  const SplitPlace& place;
  uint32_t* counters;  // of the group
  float* parts;        // of the group, [2][owner][sender][PIECES][row pair][16 units][2 rows]
  uint32_t pieces;     // that this block waits for in one step, of all senders

  XLSTM_DEVICE GridBackwardExchange(const KernelBackward& p, const SplitPlace& at, uint32_t* counters_of_group,
                                    float* parts_of_group)
      : place(at), counters(counters_of_group), parts(parts_of_group) {
    pieces = uint32_t(place.blocks * min(PIECES, ceil_divide(int(p.shape.DH) - place.rank * UNITS, 16)));
  }
  XLSTM_DEVICE uint32_t* counter(int owner, int e) const { return counters + owner * kCounterPitch + e % 2; }
  XLSTM_DEVICE uint32_t complete(int e) const { return uint32_t(e + 1) / 2 * pieces; }  // what it counts once e has arrived
  XLSTM_DEVICE float* part(int e, int owner, int sender) const {
    return parts + ((e % 2 * place.blocks + owner) * place.blocks + sender) * kPartFloats;
  }
  XLSTM_DEVICE float2 receive(int e, int row_pair, int unit) const {
    if (device::lane_id() == 0) device::wait_until([&] { return reached(counter(place.rank, e), complete(e)); });
    __syncwarp();
    const float* from = part(e, place.rank, 0) + (unit / 16 * 64 + row_pair * 16 + unit % 16) * 2;
    return sum_of_parts<8>(place.blocks,
                           [&](int rank) { return device::load_relaxed_vector<float2>(from + rank * kPartFloats); });
  }
  XLSTM_DEVICE void after_barrier(int) const {}
  template <class Vector>
  XLSTM_DEVICE void send(int e, int piece, int at, const Vector& values) const {
    device::store_word<Vector>(part(e, piece / PIECES, place.rank) + piece % PIECES * 128 + at * int(sizeof(Vector) / 4), values);
  }
  XLSTM_DEVICE void sent(int e, const Product& product, int DH) const {
    __syncwarp();
    const int lane = int(device::lane_id());
    if (lane < Product::SENT && 16 * product.target(lane) < DH) device::add_release(counter(product.target(lane) / PIECES, e), 1);
  }
};

template <class Product>
using GridExchange = std::conditional_t<std::is_same_v<typename Product::Params, KernelForward>, GridForwardExchange<Product>,
                                        GridBackwardExchange<Product>>;

}  // namespace xlstm::slstm
