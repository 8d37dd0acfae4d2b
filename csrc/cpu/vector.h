// vector.h - vectors as wide as the instruction set: loads, stores, 2^x, transposition, sums. Included only by files that are
// compiled once per instruction set; everything here is inlined, nothing is shared between those compilations.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "device/language.cuh"

namespace xlstm::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integer;
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integer;
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
};
template <typename Real>
using Vector = typename VectorOf<Real>::type;
template <typename Real>
using Integers = typename VectorOf<Real>::Integers;
template <typename Real>
constexpr int kLanes = kVectorBytes / sizeof(Real);

template <typename Real>
constexpr int64_t whole_vectors(int64_t count) {
  return (count + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

template <typename Real>
XLSTM_DEVICE Vector<Real> load(const Real* p) {
  typedef Vector<Real> Unaligned __attribute__((aligned(alignof(Real)), may_alias));
  return *reinterpret_cast<const Unaligned*>(p);
}
template <typename Real>
XLSTM_DEVICE void store(Real* p, Vector<Real> x) {
  typedef Vector<Real> Unaligned __attribute__((aligned(alignof(Real)), may_alias));
  *reinterpret_cast<Unaligned*>(p) = x;
}

template <typename Real, int... lane>
XLSTM_DEVICE Integers<Real> counting(std::integer_sequence<int, lane...>) {
  return Integers<Real>{lane...};
}
// 0, 1, 2, ...
template <typename Real>
XLSTM_DEVICE Integers<Real> lane_numbers() {
  return counting<Real>(std::make_integer_sequence<int, kLanes<Real>>());
}

// What 2^x needs of a type: adding `round` rounds to an integer, which is left in the low bits; 2^f, |f| <= 1/2, is a polynomial.
template <typename Real>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float round = 12582912.f, lowest = -125.f;
  static constexpr int mantissa_bits = 23, terms = 7;
  static constexpr float coefficients[terms] = {1.5345811e-4f, 1.3399931e-3f, 9.618489e-3f, 5.5503286e-2f,
                                                0.24022646f,   0.6931472f,    1.f};
};
template <>
struct Exponential<double> {
  static constexpr double round = 6755399441055744., lowest = -1020.;
  static constexpr int mantissa_bits = 52, terms = 14;
  static constexpr double coefficients[terms] = {// ln2^k / k!
                                                 1.3691488853904129e-12, 2.5678435993488205e-11,
                                                 4.4455382718708115e-10, 7.0549116208011233e-9,
                                                 1.0178086009239700e-7,  1.3215486790144309e-6,
                                                 1.5252733804059840e-5,  1.5403530393381610e-4,
                                                 1.3333558146428443e-3,  9.6181291076284772e-3,
                                                 5.5504108664821580e-2,  2.4022650695910071e-1,
                                                 6.9314718055994531e-1,  1.};
};

// 2^x for x <= 0 to about one rounding; exactly 0 where the result is near the smallest normal number or below.
template <typename Real>
XLSTM_DEVICE Vector<Real> exp2(Vector<Real> x) {
  using E = Exponential<Real>;
  const Vector<Real> bounded = x > E::lowest ? x : Vector<Real>{} + E::lowest, shifted = bounded + E::round;
  const Vector<Real> f = bounded - (shifted - E::round);
  Vector<Real> p = f * E::coefficients[0] + E::coefficients[1];
#pragma GCC unroll 16
  for (int k = 2; k < E::terms; ++k) p = p * f + E::coefficients[k];
  const Vector<Real> power = (Vector<Real>)((Integers<Real>)p + ((Integers<Real>)shifted << E::mantissa_bits));
  return x < E::lowest ? Vector<Real>{} : power;
}

// Lane i of the result is lane number[i] of a followed by b. g++ has had clang's builtin since version 12, its own since 4.8.
template <typename Real, int... number>
XLSTM_DEVICE Vector<Real> shuffled(Vector<Real> a, Vector<Real> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, number...);
#else
  return __builtin_shuffle(a, b, Integers<Real>{number...});
#endif
}

// One stage of a transposition: exchanges the off-diagonal blocks of size s of two rows.
template <typename Real, int s, int... lane>
XLSTM_DEVICE Vector<Real> upper(Vector<Real> a, Vector<Real> b, std::integer_sequence<int, lane...>) {
  return shuffled<Real, ((lane & s) ? kLanes<Real> + lane - s : lane)...>(a, b);
}
template <typename Real, int s, int... lane>
XLSTM_DEVICE Vector<Real> lower(Vector<Real> a, Vector<Real> b, std::integer_sequence<int, lane...>) {
  return shuffled<Real, ((lane & s) ? kLanes<Real> + lane : lane + s)...>(a, b);
}

template <typename Real, int s = 1>
XLSTM_DEVICE void transpose(Vector<Real>* x) {
  if constexpr (s < kLanes<Real>) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<Real>>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<Real>; ++i) {
      if (i & s) continue;
      const Vector<Real> a = x[i], b = x[i + s];
      x[i] = upper<Real, s>(a, b, lanes);
      x[i + s] = lower<Real, s>(a, b, lanes);
    }
    transpose<Real, 2 * s>(x);
  }
}

// Lane i of the result is the sum of x[i].
template <typename Real, int s = 1>
XLSTM_DEVICE Vector<Real> sum_each(Vector<Real>* x) {
  if constexpr (s < kLanes<Real>) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<Real>>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<Real>; i += 2 * s) {
      x[i] = upper<Real, s>(x[i], x[i + s], lanes) + lower<Real, s>(x[i], x[i + s], lanes);
    }
    return sum_each<Real, 2 * s>(x);
  } else {
    return x[0];
  }
}

template <typename Real>
XLSTM_DEVICE double sum_of(Vector<Real> x) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<Real>; ++lane) sum += x[lane];
  return sum;
}

}  // namespace
}  // namespace xlstm::cpu
