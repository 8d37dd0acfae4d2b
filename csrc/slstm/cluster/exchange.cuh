// cluster/exchange.cuh - how the blocks of one group, a cluster, hand h and dh to each other through distributed shared memory.
//
// Two receive buffers in every block, and one mbarrier for each. Exchange e = 1, 2, ... uses buffer and barrier e % 2. One phase
// of a barrier completes when
//   - every byte of exchange e has arrived: 16-byte st.async of all blocks (their own included), which count on it;
//   - every block of the cluster has arrived ("I have read the other buffer", below); this block's own arrival also says how many
//     bytes to expect;
//   - forward: every cell warp of this block has arrived ("I have read the partial sums").
// One wait per step, and no cluster barrier in the loop.
//
// Data.  st.async, its complete_tx has release semantics at cluster scope  ->  mbarrier.try_wait.acquire.cluster  ->  the
//   bytes are there for the thread that waited. In forward every warp waits, in backward the cell warps, the only readers.
//
// Overwriting (WAR).  Exchange e + 1 goes to the buffer of e - 1. A block's reads of e - 1  ->  its __syncthreads  ->  its
//   mbarrier.arrive.release.cluster at every block's barrier of e (after_barrier)  ->  the sender waits for e, acquire.cluster
//   (in backward its cell warps, and its __syncthreads carries the order to the product warps)  ->  the sender's st.async of e
//   + 1. Without these arrivals the order would rest on data dependence alone (h_t is computed from what was read), which holds
//   on every machine one can buy, but not in the memory model. Partial sums (one buffer): a cell warp's reads  ->  __syncwarp  ->
//   mbarrier.arrive (this block, barrier of e)  ->  wait for e in every warp  ->  writes.
//
// Phases.  Nobody arrives at, or sends into, the phase of e + 1 before its wait for e has returned, which needed this block's
//   arrival for e, made after this block had waited for e - 1: a barrier is never more than one phase behind. Bytes may arrive
//   before they are expected; the count of a phase then is negative for a while.
//
// Start: mbarrier.init -> fence.mbarrier_init.release.cluster -> cluster barrier, so no block sends to one that has not begun.
// End: a cluster barrier, so that no block leaves while another one's operation on its shared memory is under way.
#pragma once
#include <type_traits>

#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "device/vector.cuh"
#include "slstm/kernels.h"
#include "slstm/split/geometry.cuh"

namespace xlstm::slstm {

constexpr int kBarrierBytes = 16;  // two barriers

// What both directions share: the barriers and the arrivals at them.
struct ClusterBarriers {
  uint64_t* full;  // [2]
  int rank, blocks;

  XLSTM_DEVICE ClusterBarriers(void* shared, const SplitPlace& place, int local_arrivals)
      : full(static_cast<uint64_t*>(shared)), rank(place.rank), blocks(place.blocks) {
    if (threadIdx.x == 0) {
      device::mbarrier_init(&full[0], unsigned(blocks + local_arrivals));
      device::mbarrier_init(&full[1], unsigned(blocks + local_arrivals));
      device::mbarrier_fence_init();
    }
    device::cluster_sync();
  }
  XLSTM_DEVICE void wait(int e) const { device::mbarrier_wait_cluster(&full[e % 2], unsigned(e - 1) / 2 % 2); }
  // After the block's barrier behind its reads of exchange e - 1. By the last warp: it has the least to do, no cells in backward
  // and those of the last row in forward, and a release waits for what its warp has in flight (MEMBAR.ALL.GPU).
  XLSTM_DEVICE void arrive(int e, unsigned bytes) const {
    const int to = int(threadIdx.x) - int(blockDim.x) + 32;
    if (to < 0) return;
    if (to == rank)
      device::mbarrier_arrive_expect_bytes(&full[e % 2], bytes);
    else if (to < blocks)
      device::mbarrier_remote_arrive(&full[e % 2], unsigned(to));
  }
};

// Receive buffers: packets of eight units of one row in the order of split/product.cuh, [2][step of 32 units][row][4].
template <class Product>
struct ClusterForwardExchange {
  using Element = typename Product::Element;
  static_assert(sizeof(Element) == 2 && Product::STEP == 32, "a packet is eight units of 16 bits");
  static constexpr int CELL_WARPS = kSplitRows * Product::UNITS / 32;

  ClusterBarriers barriers;
  uint4* packets;
  int pitch, DH;

  static XLSTM_HOST_DEVICE int packets_of(int DH) { return ceil_divide(DH, 32) * 32; }
  static XLSTM_HOST_DEVICE int shared_bytes(int DH) { return kBarrierBytes + 2 * packets_of(DH) * int(sizeof(uint4)); }

  XLSTM_DEVICE ClusterForwardExchange(unsigned char* shared, const SplitPlace& place, int DH_)
      : barriers(shared, place, CELL_WARPS),
        packets(reinterpret_cast<uint4*>(shared + kBarrierBytes)),
        pitch(packets_of(DH_)),
        DH(DH_) {}

  XLSTM_DEVICE void receive(uint4 (&operand)[Product::STEPS], int e, const Product& product, int, int64_t) const {
    barriers.wait(e);
    const uint4* from = packets + e % 2 * pitch + product.lane;
#pragma unroll
    for (int i = 0; i < Product::STEPS; ++i)
      if (product.input(i) < DH) operand[i] = device::load_word<uint4>(from + product.step_index(i) * 32);
  }
  XLSTM_DEVICE void after_barrier(int e, bool more) const {
    if (more) barriers.arrive(e, unsigned(DH) * kSplitRows * 2);
  }
  // Eight neighbouring lanes hold eight neighbouring units of one row: each gets the packet, and sends it to every eighth block.
  XLSTM_DEVICE void publish(int e, Element value, int row, int unit, int) const {
    uint16_t bits;
    memcpy(&bits, &value, 2);
    const int lane = int(device::lane_id());
    const uint32_t one = bits, other = __shfl_xor_sync(device::kAllLanes, one, 1);
    const uint32_t word = lane % 2 ? other | one << 16 : one | other << 16;
    const uint32_t word2 = __shfl_xor_sync(device::kAllLanes, word, 2);
    const uint32_t low = lane & 2 ? word2 : word, high = lane & 2 ? word : word2;
    const uint32_t low4 = __shfl_xor_sync(device::kAllLanes, low, 4), high4 = __shfl_xor_sync(device::kAllLanes, high, 4);
    const uint4 packet = lane & 4 ? uint4{low4, high4, low, high} : uint4{low, high, low4, high4};
    uint4* to = packets + e % 2 * pitch + (unit / 32 * kSplitRows + row) * 4 + unit % 32 / 8;
    if (unit < DH)
      for (int block = lane % 8; block < barriers.blocks; block += 8)
        device::store_async(to, packet, &barriers.full[e % 2], unsigned(block));
    __syncwarp();
    if (lane == 0) device::mbarrier_arrive(&barriers.full[e % 2]);
  }
};

// Receive buffers: the parts of dh of this block's units, [2][sender][piece of 16 units][row pair][16 units][2 rows].
template <class Product>
struct ClusterBackwardExchange {
  static constexpr int UNITS = Product::UNITS, PIECES = UNITS / 16, kPartFloats = UNITS * kSplitRows;

  ClusterBarriers barriers;
  float* parts;
  unsigned bytes;  // received in one step

  static XLSTM_HOST_DEVICE int shared_bytes(int DH) {
    return kBarrierBytes + 2 * ceil_divide(DH, UNITS) * kPartFloats * int(sizeof(float));
  }
  XLSTM_DEVICE ClusterBackwardExchange(unsigned char* shared, const SplitPlace& place, int DH)
      : barriers(shared, place, 0), parts(reinterpret_cast<float*>(shared + kBarrierBytes)) {
    bytes = unsigned(place.blocks * min(PIECES, ceil_divide(DH - place.rank * UNITS, 16)) * 128 * int(sizeof(float)));
  }
  XLSTM_DEVICE float* part(int e, int sender) const { return parts + (e % 2 * barriers.blocks + sender) * kPartFloats; }

  XLSTM_DEVICE float2 receive(int e, int row_pair, int unit) const {
    barriers.wait(e);
    const float* from = part(e, 0) + (unit / 16 * 64 + row_pair * 16 + unit % 16) * 2;
    return sum_of_parts<4>(barriers.blocks, [&](int rank) { return device::load_word<float2>(from + rank * kPartFloats); });
  }
  XLSTM_DEVICE void after_barrier(int e) const { barriers.arrive(e, bytes); }
  XLSTM_DEVICE void send(int e, int piece, int at, const float4& v) const {
    float* to = part(e, barriers.rank) + piece % PIECES * 128 + at * 4;
    const uint4 words{__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w)};
    device::store_async(reinterpret_cast<uint4*>(to), words, &barriers.full[e % 2], unsigned(piece / PIECES));
  }
  XLSTM_DEVICE void sent(int, const Product&, int) const {}
};

template <class Product>
using ClusterExchange = std::conditional_t<std::is_same_v<typename Product::Params, KernelForward>,
                                           ClusterForwardExchange<Product>, ClusterBackwardExchange<Product>>;

}  // namespace xlstm::slstm
