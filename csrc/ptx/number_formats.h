// number_formats.h - bfloat16, float16 and tf32 as PTX rounds to them: nearest, ties to even (tf32: away), NaN is 0x7fff.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace xlstm::ptx {

inline uint16_t to_bf16(float x) {
  uint32_t u = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7fff;
  u += 0x7fff + (u >> 16 & 1);
  return uint16_t(u >> 16);
}

inline float from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

inline uint16_t to_f16(float x) { return std::isnan(x) ? 0x7fff : std::bit_cast<uint16_t>(_Float16(x)); }

inline float from_f16(uint16_t x) { return float(std::bit_cast<_Float16>(x)); }

inline uint32_t to_tf32(float x) {  // the 13 low bits are dropped
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (std::isnan(x) || std::isinf(x)) return u;
  return (u + 0x1000u) & 0xffffe000u;
}

inline float from_tf32(uint32_t x) { return std::bit_cast<float>(x & 0xffffe000u); }

}  // namespace xlstm::ptx
