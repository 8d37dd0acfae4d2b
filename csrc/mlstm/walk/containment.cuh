// containment.cuh - NaN and infinities of v stay where they are: they must not reach earlier steps as 0 x NaN through the
// causal zeros of P. H looks at every fragment of X and leaves the fast path for a key tile that has a value which is not finite.
#pragma once
#include "device/packed.cuh"
#include "mlstm/walk/product.cuh"

namespace xlstm::mlstm {

// On the diagonal such values are left out of the product, and NaN is written where P is not zero by construction, that is from
// their own step on.
template <class Walk>
XLSTM_DEVICE void add_across_causal_zeros(const WalkPlace<Walk>& place, const StagedChunk& chunk, typename Walk::Sums& acc,
                                          int pass, int key_tile, const typename Walk::Operand& x) {
  using Tile = typename Walk::Tile;
  using Element = typename Walk::Element;
  uint32_t x_nan[Tile::STATE_TILES][4], x_zero[Tile::STATE_TILES][4];
#pragma unroll
  for (int state_tile = 0; state_tile < Tile::STATE_TILES; ++state_tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x_nan[state_tile][e] = device::nan_unless_finite<Element>(x[state_tile][e]);
      x_zero[state_tile][e] = device::zero_unless_finite<Element>(x[state_tile][e]);
    }
  }
  add_p_x(place, acc, pass, key_tile, x_nan, x_zero);
#pragma unroll
  for (int row_tile = 0; row_tile < Tile::PASS_ROW_TILES; ++row_tile)
    if (pass * Tile::PASS_ROW_TILES + row_tile == key_tile) {
#pragma unroll
      for (int i = 0; i < Tile::OUTPUT_TILES; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const device::Coordinate in_tile = device::c_coordinate(place.fragment, e);
          const int unit = place.output_warp * Tile::STATE_TILES * 2 + i;
#pragma unroll 1
          for (int key = 0; key <= in_tile.row; ++key) {
            const unsigned char* v =
                place.smem + chunk.x + swizzled<Tile::OUTPUTS>(key_tile * 16 + key, unit) + 2 * in_tile.column;
            if (device::not_finite<Element>(*reinterpret_cast<const uint16_t*>(v))) acc[row_tile][i][e] = NAN;
          }
        }
      }
    }
}

template <class Walk>
XLSTM_DEVICE void add_key_tile(const WalkPlace<Walk>& place, const StagedChunk& chunk, typename Walk::Sums& acc, int pass,
                               int key_tile, const typename Walk::Operand& x) {
  if (Walk::Tile::ROW_PASSES == 1 && !place.multiplies(key_tile)) return;  // with more passes the loop has asked
  if constexpr (Walk::NORMALISES) {
    uint32_t bad = 0;
#pragma unroll
    for (int state_tile = 0; state_tile < Walk::Tile::STATE_TILES; ++state_tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) bad |= device::not_finite<typename Walk::Element>(x[state_tile][e]);
    }
    if (__any_sync(device::kAllLanes, bad != 0)) return add_across_causal_zeros(place, chunk, acc, pass, key_tile, x);
  }
  add_p_x(place, acc, pass, key_tile, x, x);
}

}  // namespace xlstm::mlstm
