// packed.cuh - pairs of 16-bit elements in one register: back to float32, and finding values that are not finite.
#pragma once
#include <type_traits>

#include "device/convert.cuh"

namespace xlstm::device {

template <class T>
XLSTM_DEVICE float low_half(uint32_t pair) {
  if constexpr (std::is_same<T, __nv_bfloat16>::value) {
    return __uint_as_float(pair << 16);
  } else {
    __half_raw raw;
    raw.x = uint16_t(pair);
    return to_float(__half(raw));
  }
}
template <class T>
XLSTM_DEVICE float high_half(uint32_t pair) {
  if constexpr (std::is_same<T, __nv_bfloat16>::value)
    return __uint_as_float(pair & 0xffff0000u);
  else
    return low_half<T>(pair >> 16);
}

// Bits 15 and 31 tell which halves are NaN or infinite (all exponent bits set: adding one to the exponent carries out of it).
template <class T>
XLSTM_DEVICE uint32_t not_finite(uint32_t pair) {
  constexpr uint32_t kExponent = std::is_same<T, __nv_bfloat16>::value ? 0x7f807f80u : 0x7c007c00u;
  constexpr uint32_t kOne = std::is_same<T, __nv_bfloat16>::value ? 0x00800080u : 0x04000400u;
  return ((pair & kExponent) + kOne) & 0x80008000u;
}
// The same pair with its halves that are not finite set to zero, or to NaN.
template <class T>
XLSTM_DEVICE uint32_t zero_unless_finite(uint32_t pair) {
  const uint32_t bad = not_finite<T>(pair);
  return pair & ~((bad >> 15) * 0xffffu);
}
template <class T>
XLSTM_DEVICE uint32_t nan_unless_finite(uint32_t pair) {
  const uint32_t bad = not_finite<T>(pair);
  return pair | ((bad >> 15) * 0x7fffu);
}

}  // namespace xlstm::device
