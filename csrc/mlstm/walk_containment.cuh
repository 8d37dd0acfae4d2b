// walk_containment.cuh - NaN and infinities of v stay where they are: they must not reach earlier steps as 0 x NaN through the
// causal zeros of P. H looks at every fragment of X and leaves the fast path for a key tile that has a value which is not finite.
#pragma once
#include "device/packed.cuh"
#include "mlstm/walk_product.cuh"

namespace xlstm::mlstm {

// On the diagonal such values are left out of the product, and NaN is written where P is not zero by construction, that is from
// their own step on.
template <class W>
XLSTM_DEVICE void add_across_causal_zeros(const WalkPlace<W>& at, const StagedChunk& chunk, float (&acc)[W::T::MR][W::T::OT][4],
                                          int pass, int kt, const uint32_t (&x)[W::T::MO][4]) {
  using T = typename W::T;
  using Element = typename W::Element;
  uint32_t x_nan[T::MO][4], x_zero[T::MO][4];
#pragma unroll
  for (int mo = 0; mo < T::MO; ++mo) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      x_nan[mo][e] = device::nan_unless_finite<Element>(x[mo][e]), x_zero[mo][e] = device::zero_unless_finite<Element>(x[mo][e]);
  }
  add_p_x(at, acc, pass, kt, x_nan, x_zero);
#pragma unroll
  for (int mt = 0; mt < T::MR; ++mt)
    if (pass * T::MR + mt == kt) {
#pragma unroll
      for (int i = 0; i < T::OT; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int t = at.group + (e >> 1) * 8, unit = at.wo * T::MO * 2 + i, byte = 4 * at.quad + 2 * (e & 1);
#pragma unroll 1
          for (int j = 0; j <= t; ++j) {
            const unsigned char* v = at.smem + chunk.x + swizzled<T::BO>(kt * 16 + j, unit) + byte;
            if (device::not_finite<Element>(*reinterpret_cast<const uint16_t*>(v))) acc[mt][i][e] = NAN;
          }
        }
      }
    }
}

template <class W>
XLSTM_DEVICE void add_key_tile(const WalkPlace<W>& at, const StagedChunk& chunk, float (&acc)[W::T::MR][W::T::OT][4], int pass,
                               int kt, const uint32_t (&x)[W::T::MO][4]) {
  if (W::T::ROW_PASSES == 1 && !at.multiplies(kt)) return;  // with more passes the loop has asked
  if constexpr (W::NORMALISES) {
    uint32_t bad = 0;
#pragma unroll
    for (int mo = 0; mo < W::T::MO; ++mo) {
#pragma unroll
      for (int e = 0; e < 4; ++e) bad |= device::not_finite<typename W::Element>(x[mo][e]);
    }
    if (__any_sync(device::kAllLanes, bad != 0)) return add_across_causal_zeros(at, chunk, acc, pass, kt, x);
  }
  add_p_x(at, acc, pass, kt, x, x);
}

}  // namespace xlstm::mlstm
