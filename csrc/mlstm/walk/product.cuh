// product.cuh - O += P X for one tile of 16 keys, P from shared memory, X in registers.
#pragma once
#include "mlstm/walk/place.cuh"

namespace xlstm::mlstm {

// X of a key tile by ldmatrix.trans: operand b (k: keys, n: columns of O).
template <class Walk>
XLSTM_DEVICE void load_x(const WalkPlace<Walk>& place, const StagedChunk& chunk, int key_tile, typename Walk::Operand& x) {
#pragma unroll
  for (int state_tile = 0; state_tile < Walk::Tile::STATE_TILES; ++state_tile)
    device::ldmatrix_x4<device::kTransposed>(x[state_tile], place.x(chunk, key_tile * 16, state_tile * 16));
}

// The tile on the diagonal takes its own copy of X (containment.cuh).
template <class Walk>
XLSTM_DEVICE void add_p_x(const WalkPlace<Walk>& place, typename Walk::Sums& acc, int pass, int key_tile,
                          const typename Walk::Operand& x, const typename Walk::Operand& x_diagonal) {
  using Tile = typename Walk::Tile;
  using Element = typename Walk::Element;
#pragma unroll
  for (int i = 0; i < Tile::PASS_ROW_TILES; ++i) {
    const int row_tile = pass * Tile::PASS_ROW_TILES + i;
    if (Walk::REVERSE ? row_tile <= key_tile : row_tile >= key_tile) {
      uint32_t a[4];
      device::ldmatrix_x4(a, place.scores(row_tile * 16, key_tile * 16));
#pragma unroll
      for (int state_tile = 0; state_tile < Tile::STATE_TILES; ++state_tile) {
        uint32_t b[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) b[e] = row_tile == key_tile ? x_diagonal[state_tile][e] : x[state_tile][e];
        device::mma_m16n8k16<Element>(acc[i][2 * state_tile], a, {b[0], b[1]});
        device::mma_m16n8k16<Element>(acc[i][2 * state_tile + 1], a, {b[2], b[3]});
      }
    }
  }
}

}  // namespace xlstm::mlstm
