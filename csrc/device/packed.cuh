// packed.cuh - pairs of 16-bit elements in one register: back to float32, and finding values that are not finite.
#pragma once
#include "device/convert.cuh"

namespace xlstm::device {

template <class T>
XLSTM_DEVICE float low_half(uint32_t pair);
template <>
XLSTM_DEVICE float low_half<__nv_bfloat16>(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
template <>
XLSTM_DEVICE float low_half<__half>(uint32_t pair) {
  __half_raw raw;
  raw.x = uint16_t(pair);
  return to_float(__half(raw));
}
template <class T>
XLSTM_DEVICE float high_half(uint32_t pair);
template <>
XLSTM_DEVICE float high_half<__nv_bfloat16>(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
template <>
XLSTM_DEVICE float high_half<__half>(uint32_t pair) {
  return low_half<__half>(pair >> 16);
}

namespace detail {
template <class T>
struct Exponent;  // its bits and the lowest of them, in both halves
template <>
struct Exponent<__nv_bfloat16> {
  static constexpr uint32_t kBits = 0x7f807f80u, kOne = 0x00800080u;
};
template <>
struct Exponent<__half> {
  static constexpr uint32_t kBits = 0x7c007c00u, kOne = 0x04000400u;
};
}  // namespace detail

// Bits 15 and 31 tell which halves are NaN or infinite (all exponent bits set: adding one to the exponent carries out of it).
template <class T>
XLSTM_DEVICE uint32_t not_finite(uint32_t pair) {
  return ((pair & detail::Exponent<T>::kBits) + detail::Exponent<T>::kOne) & 0x80008000u;
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
