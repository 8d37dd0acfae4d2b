// math.cuh - the few functions the gates are made of, under one name for nvcc and g++, float and double.
//
//               nvcc float                        g++ float                                       double
// exp2_approx   ex2.approx.ftz, 2 ulp             polynomial, 1 ulp                               exp2
// log2_approx   lg2.approx.ftz, 2^-22 near 1      polynomial, 2 ulp                               log2
// rcp_approx    rcp.approx.ftz, 1 ulp             1 / x, rounded to nearest                       1 / x
// log2_1p       log2_approx, a series below 1/32  atanh series, 3 ulp                             log1p
//
// The g++ float forms have no branch and no table, so loops over them become vector code.  All of them flush subnormal
// arguments and results to zero and keep NaN.  Exponentials are only ever taken of arguments <= 0.
#pragma once
#include <math.h>
#include <stdint.h>

#include "device/language.cuh"

namespace xlstm::device {

template <typename Real>
struct Constants {
  static constexpr Real log2e = Real(1.44269504088896340735992468100189214);
  static constexpr Real ln2 = Real(0.693147180559945309417232121458176568);
};

XLSTM_DEVICE float absolute(float x) { return fabsf(x); }
XLSTM_DEVICE double absolute(double x) { return fabs(x); }
XLSTM_DEVICE float with_sign(float magnitude, float sign) { return copysignf(magnitude, sign); }
XLSTM_DEVICE double with_sign(double magnitude, double sign) { return copysign(magnitude, sign); }

XLSTM_DEVICE double exp2_approx(double x) { return exp2(x); }
XLSTM_DEVICE double log2_approx(double x) { return log2(x); }
XLSTM_DEVICE double rcp_approx(double x) { return 1.0 / x; }
XLSTM_DEVICE double log2_1p(double e) { return log1p(e) * Constants<double>::log2e; }

#ifdef __CUDACC__

XLSTM_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
XLSTM_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
XLSTM_DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// log2(1 + e) for 0 <= e <= 1.  lg2.approx is only good to 2^-22 absolute near 1, and long memories live there.
XLSTM_DEVICE float log2_1p(float e) {
  constexpr float k = Constants<float>::log2e;
  const float series = e * (k + e * (-0.5f * k + e * (k / 3.f - e * (0.25f * k))));
  return e < 0.03125f ? series : log2_approx(1.f + e);
}

#else

XLSTM_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
XLSTM_DEVICE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// 2^x, x < 127.5.  x = n + f with |f| <= 1/2: adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits.
XLSTM_DEVICE float exp2_approx(float x) {
  constexpr float round_to_integer = 12582912.f;
  const float clamped = x < -127.f ? -127.f : x;
  const float shifted = clamped + round_to_integer;
  const float f = clamped - (shifted - round_to_integer);
  float p = 1.5345811e-4f;
  p = p * f + 1.3399931e-3f;
  p = p * f + 9.618489e-3f;
  p = p * f + 5.5503286e-2f;
  p = p * f + 0.24022646f;
  p = p * f + 0.6931472f;
  p = p * f + 1.f;
  const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  return x < -126.f ? 0.f : p * power;
}

// x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); log2(1 + f) = f q(f), q with log2(e) multiplied in.
XLSTM_DEVICE float log2_approx(float x) {
  constexpr float k = Constants<float>::log2e;
  const uint32_t bits = bits_of(x);
  const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = float_of(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.f;
  float q = -0.07621118f * k;
  q = q * f + 0.12904663f * k;
  q = q * f - 0.13243462f * k;
  q = q * f + 0.14181834f * k;
  q = q * f - 0.16609013f * k;
  q = q * f + 0.20001969f * k;
  q = q * f - 0.25001585f * k;
  q = q * f + 0.33333325f * k;
  q = q * f - 0.49999988f * k;
  q = q * f + k;
  const float y = q * f + static_cast<float>(exponent);
  const float of_small = x < 0.f ? __builtin_nanf("") : -__builtin_inff();
  const float finite = x < 1.17549435e-38f ? of_small : y;
  return x <= 3.40282347e38f ? finite : x;  // infinity and NaN
}

XLSTM_DEVICE float rcp_approx(float x) { return 1.f / x; }

// log2(1 + e) for 0 <= e <= 1, with relative precision: log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3.
XLSTM_DEVICE float log2_1p(float e) {
  constexpr float k = 2.f * Constants<float>::log2e;
  const float s = e / (2.f + e), s2 = s * s;
  float p = 0.14089167f * k;
  p = p * s2 + 0.139803f * k;
  p = p * s2 + 0.20012455f * k;
  p = p * s2 + 0.33333158f * k;
  p = p * s2 + k;
  return s * p;
}

#endif

// log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|)): no cancellation, and x itself for very negative x.
template <typename Real>
XLSTM_DEVICE Real log_sigmoid(Real x) {
  const Real e = exp2_approx(-absolute(x) * Constants<Real>::log2e);
  return (x < Real(0) ? x : Real(0)) - log2_1p(e) * Constants<Real>::ln2;
}

// 1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow.
template <typename Real>
XLSTM_DEVICE Real sigmoid(Real x) {
  const Real e = exp2_approx(-absolute(x) * Constants<Real>::log2e);
  return (x < Real(0) ? e : Real(1)) * rcp_approx(Real(1) + e);
}

}  // namespace xlstm::device
