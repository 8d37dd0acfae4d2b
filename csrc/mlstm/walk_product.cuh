// walk_product.cuh - O += P X for one tile of 16 keys, P from shared memory, X in registers.
#pragma once
#include "mlstm/walk_place.cuh"

namespace xlstm::mlstm {

// X of key tile kt by ldmatrix.trans: operand b (k = j, n = o).
template <class W>
XLSTM_DEVICE void load_x(const WalkPlace<W>& at, const StagedChunk& chunk, int kt, uint32_t (&x)[W::T::MO][4]) {
#pragma unroll
  for (int mo = 0; mo < W::T::MO; ++mo)
    device::ldmatrix_x4_trans(x[mo], at.smem + moved<W::T::BO>(chunk.x + at.x_lane, mo * 16) + kt * 16 * W::T::BO * 2);
}

// The tile on the diagonal takes its own copy of X (walk_containment.cuh).
template <class W>
XLSTM_DEVICE void add_p_x(const WalkPlace<W>& at, float (&acc)[W::T::MR][W::T::OT][4], int pass, int kt,
                          const uint32_t (&x)[W::T::MO][4], const uint32_t (&x_diagonal)[W::T::MO][4]) {
  using T = typename W::T;
  using Element = typename W::Element;
  constexpr int L = T::L, MR = T::MR, MO = T::MO;
#pragma unroll
  for (int mt = 0; mt < MR; ++mt)
    if (W::REVERSE ? pass * MR + mt <= kt : pass * MR + mt >= kt) {
      uint32_t a[4];
      device::ldmatrix_x4(a, at.smem + W::Shared::P + moved<L>(at.p_lane, kt * 16) + (pass * MR + mt) * 16 * L * 2);
#pragma unroll
      for (int mo = 0; mo < MO; ++mo) {
        uint32_t b[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) b[e] = pass * MR + mt == kt ? x_diagonal[mo][e] : x[mo][e];
        device::mma_m16n8k16<Element>(acc[mt][2 * mo], a, {b[0], b[1]});
        device::mma_m16n8k16<Element>(acc[mt][2 * mo + 1], a, {b[2], b[3]});
      }
    }
}

}  // namespace xlstm::mlstm
