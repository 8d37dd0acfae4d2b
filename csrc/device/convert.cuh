// convert.cuh - element types to float32 and back, rounded to nearest even, alone or packed in pairs as mma wants them.
#pragma once
#include <cstring>

#include "device/kernel.cuh"

namespace xlstm::device {

XLSTM_DEVICE float to_float(float x) { return x; }
XLSTM_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
XLSTM_DEVICE float to_float(__half x) { return __half2float(x); }

template <class T>
XLSTM_DEVICE T from_float(float x);
template <>
XLSTM_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
XLSTM_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
XLSTM_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

namespace detail {
XLSTM_DEVICE __nv_bfloat162 pair_of(__nv_bfloat16*, float low, float high) { return __floats2bfloat162_rn(low, high); }
XLSTM_DEVICE __half2 pair_of(__half*, float low, float high) { return __floats2half2_rn(low, high); }
}  // namespace detail

// Two elements in one register, low half first.
template <class T>
XLSTM_DEVICE uint32_t pack(float low, float high) {
  const auto pair = detail::pair_of(static_cast<T*>(nullptr), low, high);
  uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}

}  // namespace xlstm::device
