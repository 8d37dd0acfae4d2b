// tile.cuh - the gates of one chunk for a group of heads, through shared memory: (B, S, NH) is read and written in whole
// rows, warps work on one head at a time.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "device/language.cuh"
#include "mlstm/elements.cuh"
#include "mlstm/sequences.cuh"

namespace xlstm::mlstm {

constexpr int kHeadsPerBlock = 16, kGateThreads = 256, kGateWarps = kGateThreads / 32;

template <int L>
struct GateTile {
  float value[kHeadsPerBlock][L + 2];  // padded: two steps of 16 heads meet no bank twice

  // Steps past the end get `fill`.
  XLSTM_DEVICE void load(const View<>& gate, ElementType element, const Chunk& chunk, int first_head, int heads, float fill) {
    for (int x = int(threadIdx.x); x < L * heads; x += kGateThreads) {
      const int t = x / heads, head = x % heads;
      const int64_t step = chunk.index * L + t;
      const int64_t at = chunk.span.batch * gate.batch + (chunk.span.first + step) * gate.step + (first_head + head) * gate.head;
      value[head][t] = step < chunk.span.length ? load_element(gate.data, element, at) : fill;
    }
  }
};

// visit(std::integral_constant<int, L>)
template <class Visit>
void with_chunk_length(const char* what, int L, Visit&& visit) {
  switch (L) {
    case 16:
      return visit(std::integral_constant<int, 16>{});
    case 32:
      return visit(std::integral_constant<int, 32>{});
    case 64:
      return visit(std::integral_constant<int, 64>{});
  }
  throw std::invalid_argument(std::string("mlstm ") + what + ": L: got " + std::to_string(L) + ", expected 16, 32 or 64");
}

// Blocks are (slot, group of heads), groups fastest.
inline int64_t gate_blocks(const Sequences& sequences, int L) {
  return chunk_slots(sequences, L) * ((sequences.NH + kHeadsPerBlock - 1) / kHeadsPerBlock);
}
struct GateBlock {
  int64_t slot;
  int first_head, heads;
};
XLSTM_DEVICE GateBlock gate_block(int64_t NH) {
  const unsigned groups = unsigned(NH + kHeadsPerBlock - 1) / kHeadsPerBlock;  // in 32 bits: a 64-bit division is a call
  const int first = int(blockIdx.x % groups) * kHeadsPerBlock;
  return {int64_t(blockIdx.x / groups), first, int(min(int64_t(kHeadsPerBlock), NH - first))};
}

}  // namespace xlstm::mlstm
