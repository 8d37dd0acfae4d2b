// mlstm_gates.h - the gates of one chunk of one head (M4-M6 of csrc/mlstm/README.md) and the normaliser. Included only by files
// that are compiled once per instruction set. b is a difference of large sums when some forget gates are about -1e4, so sums are
// taken in a wider type, and exponents are kept to base 2 as pairs of Real.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/vector.h"
#include "device/math.cuh"

namespace xlstm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename Real>
struct WiderThan {
  typedef double type;
};
template <>
struct WiderThan<double> {
  typedef long double type;
};
template <typename Real>
using Wide = typename WiderThan<Real>::type;

// Gates of float, in double to 1e-11: functions without a branch, so that loops over them become vector code.

template <typename To, typename From>
XLSTM_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}
// Horner's rule, the coefficient of the highest power first.
template <typename... Rest>
XLSTM_DEVICE double polynomial(double z, double first, Rest... rest) {
  double p = first;
  ((p = p * z + rest), ...);
  return p;
}
// exp(-y), y >= 0; z = x - n ln2 as in exp2_approx, and the Taylor series of exp(z).
XLSTM_DEVICE double exp_minus(double y) {
  constexpr double round_to_integer = Exponential<double>::round;
  const double x = (y < 700 ? y : 700) * -device::Constants<double>::log2e, shifted = x + round_to_integer;
  const double z = (x - (shifted - round_to_integer)) * device::Constants<double>::ln2;
  const double p = polynomial(z, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2, 1., 1.);
  return bit_cast<double>(bit_cast<uint64_t>(p) + (bit_cast<uint64_t>(shifted) << 52));
}
// log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3.
XLSTM_DEVICE double log_sigmoid(double x, float) {
  const double e = exp_minus(x < 0 ? -x : x), s = e / (2 + e), s2 = s * s;
  const double p = polynomial(s2, 1. / 21, 1. / 19, 1. / 17, 1. / 15, 1. / 13, 1. / 11, 1. / 9, 1. / 7, 1. / 5, 1. / 3, 1.);
  return (x < 0 ? x : 0) - 2 * s * p;
}
// exp(x), x <= 0; the rounding of x to float is made up for.
XLSTM_DEVICE float exponential(double x, float) {
  const double y = x * device::Constants<double>::log2e, bounded = y < -200 ? -200 : y;
  const float high = static_cast<float>(bounded), low = static_cast<float>(bounded - high);
  return device::exp2_approx(high) * (1 + low * device::Constants<float>::ln2);
}

// Gates of double.

XLSTM_DEVICE long double log_sigmoid(long double x, double) {
  return (x < 0 ? x : 0) - static_cast<long double>(std::log1p(std::exp(-std::abs(static_cast<double>(x)))));
}
XLSTM_DEVICE double exponential(long double x, double) { return std::exp(static_cast<double>(x)); }

// t and j count steps of the chunk. Arrays hold whole vectors.
template <typename Real>
struct Gates {
  Real *i, *f;  // as given
  Wide<Real>*log_i, *log_f;
  Wide<Real>*beta, *rise, *m;                         // log_i_j - b_j;  m_t - b_t;  m_t
  Real *beta_high, *beta_low, *rise_high, *rise_low;  // W_tj = 2^(beta_j - rise_t)
  Real *u, *w;
  int64_t* seen_until;  // W_tj = 0 for t from here on: a later step has reset the state
  Real g, m_after;      // of the chunk

  Gates(Scratch& scratch, int64_t L) {
    const int64_t room = whole_vectors<Real>(L);
    for (Wide<Real>** array : {&log_i, &log_f, &beta, &rise, &m}) *array = scratch.take<Wide<Real>>(room);
    for (Real** array : {&i, &f, &beta_high, &beta_low, &rise_high, &rise_low, &u, &w}) *array = scratch.take<Real>(room);
    seen_until = scratch.take<int64_t>(room);
  }

  // i, f: pre-activations of the chunk's steps, without NaN, i < inf. m_before: of the state before it, rounded to Real as a
  // state keeps it, so that a sequence split at a border gives the same bits.
  void scan(const Real* given_i, int64_t i_step, const Real* given_f, int64_t f_step, int64_t steps, Real m_before,
            bool sigmoid_igate) {
    for (int64_t t = 0; t < steps; ++t) {
      log_i[t] = i[t] = given_i[t * i_step];
      log_f[t] = f[t] = given_f[t * f_step];
    }
    for (int64_t t = 0; t < steps; ++t) log_f[t] = log_sigmoid(log_f[t], Real());
    if (sigmoid_igate) {
      for (int64_t t = 0; t < steps; ++t) log_i[t] = log_sigmoid(log_i[t], Real());
    }
    const Wide<Real> never = -kInfinity, start = m_before;
    Wide<Real> b = 0, highest = never;  // (M4); highest: of log_i_j - b_j over the steps j that t sees
    int64_t first_reset = steps, last_reset = 0;
    for (int64_t t = 0; t < steps; ++t) {
      const bool reset = log_f[t] == never;
      if (reset) {
        first_reset = std::min(first_reset, t);
        last_reset = t;
        highest = never;
      } else {
        b += log_f[t];
      }
      beta[t] = log_i[t] - b;
      // A reset with a closed input gate leaves the fresh state, whose m is 0.
      highest = std::max(highest, reset && beta[t] == never ? -b : beta[t]);
      rise[t] = sigmoid_igate ? -b : std::max(t >= first_reset ? never : start, highest);  // (M6)
      if (rise[t] == never) rise[t] = -b;
      m[t] = b + rise[t];
    }
    const bool any_reset = first_reset < steps;
    const Wide<Real> m_last = std::max(any_reset ? never : b + start, b + highest);  // (M5)
    m_after = sigmoid_igate || m_last == never ? Real(0) : static_cast<Real>(m_last);
    const Wide<Real> to_end = b - m_after;
    for (int64_t t = 0; t < first_reset; ++t) u[t] = exponential(start - rise[t], Real());
    for (int64_t t = first_reset; t < steps; ++t) u[t] = 0;
    for (int64_t j = 0; j < last_reset; ++j) w[j] = 0;
    for (int64_t j = last_reset; j < steps; ++j) w[j] = exponential(beta[j] + to_end, Real());
    g = any_reset ? Real(0) : exponential(start + to_end, Real());
    split(beta, steps, beta_high, beta_low);
    split(rise, steps, rise_high, rise_low);

    const int64_t room = whole_vectors<Real>(steps);
    int64_t until = room;
    for (int64_t t = steps; t-- > 0;) {
      seen_until[t] = until;
      if (log_f[t] == never) until = t;
    }
    for (int64_t t = steps; t < room; ++t) {  // the rest of the last vector sees nothing
      u[t] = w[t] = rise_low[t] = 0;
      rise_high[t] = Real(1e30);
    }
  }

  bool resets_at(int64_t t) const { return log_f[t] == Wide<Real>(-kInfinity); }

  // Replaces i and f by the slopes of log_i and log_f: sigmoid(-x) = exp(log sigmoid(x) - x), or 1; 0 for a gate that is closed
  // or resets, whose own gradient is 0.
  void slopes(int64_t steps, bool sigmoid_igate) {
    const auto slope = [](Wide<Real> log_sigmoid, Real x) {
      return log_sigmoid == Wide<Real>(-kInfinity) ? Real(0) : exponential(log_sigmoid - x, Real());
    };
    for (int64_t t = 0; t < steps; ++t) f[t] = slope(log_f[t], f[t]);
    for (int64_t t = 0; t < steps; ++t) i[t] = sigmoid_igate ? slope(log_i[t], i[t]) : Real(1);
  }

  // W_tj for one j and a vector of t, 0 where t does not see j.
  XLSTM_DEVICE Vector<Real> weight(int64_t j, int64_t t) const {
    const Vector<Real> W = exp2<Real>((beta_high[j] - load(rise_high + t)) + (beta_low[j] - load(rise_low + t)));
    if (t >= j && t + kLanes<Real> <= seen_until[j]) return W;
    using Integer = typename VectorOf<Real>::Integer;
    const Integers<Real> lane = lane_numbers<Real>();
    return lane >= Integer(j - t) && lane < Integer(seen_until[j] - t) ? W : Vector<Real>{};
  }

 private:
  // x as the sum of two Reals, to base 2. A closed input gate (-inf) becomes a number far below every other.
  static void split(const Wide<Real>* x, int64_t count, Real* high, Real* low) {
    constexpr Wide<Real> log2e = 1.44269504088896340735992468100189214L;
    for (int64_t t = 0; t < count; ++t) {
      const Wide<Real> y = (x[t] < Wide<Real>(-1e30) ? Wide<Real>(-1e30) : x[t]) * log2e;
      high[t] = static_cast<Real>(y);
      low[t] = static_cast<Real>(y - high[t]);
    }
  }
};

// (M3): h = r N, with numerator and denominator times exp(min(m, 0)), so that no exponent is positive. active: where |s d| is the
// larger. A denominator of no normal number is 0, and so is h.
template <typename Real>
void normaliser(const Real* __restrict__ s_dot, const Wide<Real>* __restrict__ m, int64_t steps, Real scale, Real eps,
                bool normalize, Real* __restrict__ r, Real* __restrict__ active) {
  for (int64_t t = 0; t < steps; ++t) {
    const bool negative = m[t] < 0;
    const Real e = exponential(negative ? m[t] : -m[t], Real()), shrink = negative ? e : Real(1), floor = negative ? Real(1) : e;
    const Real size = (s_dot[t] < 0 ? -s_dot[t] : s_dot[t]) * shrink;
    const bool larger = !(size <= floor);  // a NaN stays one
    const Real denominator = (larger ? size : floor) + eps * shrink;
    const Real quotient = denominator < std::numeric_limits<Real>::min() ? Real(0) : scale * shrink / denominator;
    r[t] = normalize ? quotient : scale;
    active[t] = normalize && larger ? Real(1) : Real(0);
  }
  for (int64_t t = steps; t < whole_vectors<Real>(steps); ++t) r[t] = active[t] = 0;
}

}  // namespace
}  // namespace xlstm::cpu
