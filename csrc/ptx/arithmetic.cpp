// arithmetic.cpp - integers and floats: add to fma, shifts and logic, prmt and bfi. The approximate functions (ex2, lg2, rcp) are
// correctly rounded here, which those of a GPU are not.
#include <cfenv>
#include <cmath>

#include "ptx/decode.h"
#include "ptx/lanes.h"

namespace xlstm::ptx {
namespace {

template <class T>
constexpr bool kFloat = std::is_floating_point_v<T>;
template <class T>
using Bits = std::make_unsigned_t<T>;

// ---- two operands of one type
struct Add {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kFloat<T>)
      return a + b;
    else
      return T(uint64_t(a) + uint64_t(b));
  }
};
struct Sub {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kFloat<T>)
      return a - b;
    else
      return T(uint64_t(a) - uint64_t(b));
  }
};
struct Mul {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kFloat<T>)
      return a * b;
    else
      return T(uint64_t(a) * uint64_t(b));
  }
};
struct Div {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kFloat<T>) {
      return a / b;
    } else {
      if (b == 0) throw Fault("integer division by zero");
      if (std::is_signed_v<T> && b == T(-1)) return T(0 - Bits<T>(a));
      return T(a / b);
    }
  }
};
struct Rem {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) throw Fault("integer remainder by zero");
    if (std::is_signed_v<T> && b == T(-1)) return 0;
    return T(a % b);
  }
};
// Of a number and a NaN the number; -0 is less than 0.
template <bool largest>
struct Extreme {
  template <class T>
  static T of(T a, T b) {
    if constexpr (kFloat<T>) {
      if (std::isnan(a)) return b;
      if (std::isnan(b)) return a;
      if (a == b) return std::signbit(a) == largest ? b : a;
    }
    return (a < b) == largest ? b : a;
  }
};
using Min = Extreme<false>;
using Max = Extreme<true>;
struct MulHigh {
  template <class T>
  static T of(T a, T b) {
    using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                    std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
    return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
  }
};
struct And {
  template <class T>
  static T of(T a, T b) {
    return T(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return T(a | b);
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return T(a ^ b);
  }
};

template <class Op, class T>
Handler binary_handler(T) {
  return binary<T, T, T, Op::template of<T>>;
}
template <class Op>
Handler binary_of(const Type& t) {
  return for_any(t, [](auto x) { return binary_handler<Op>(x); });
}
template <class Op>
Handler integer_binary_of(const Type& t) {
  return for_integer(t, [](auto x) { return binary_handler<Op>(x); });
}

// ---- one operand
template <class T>
T negate(T a) {
  if constexpr (kFloat<T>)
    return -a;
  else
    return T(0 - uint64_t(a));
}
template <class T>
T absolute(T a) {
  if constexpr (kFloat<T>)
    return std::fabs(a);
  else
    return a < 0 ? negate(a) : a;
}
template <class T>
T complement(T a) {
  return T(~a);
}
uint32_t ones(uint32_t a) { return uint32_t(__builtin_popcount(a)); }
float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.f, x) : x; }
float ex2(float x) { return float(std::exp2(double(x))); }
float ex2_flushed(float x) { return flushed(ex2(flushed(x))); }
float lg2_flushed(float x) { return flushed(float(std::log2(double(flushed(x))))); }
float rcp(float x) { return 1.f / x; }
float rcp_flushed(float x) { return flushed(1.f / flushed(x)); }
float root(float x) { return std::sqrt(x); }

// ---- the rest
template <class D, class T>
D wide_product(T a, T b) {
  return D(D(a) * D(b));
}
template <class T>
T multiply_add(T a, T b, T c) {
  return T(uint64_t(a) * uint64_t(b) + uint64_t(c));
}
template <class D, class T>
D wide_multiply_add(T a, T b, D c) {
  return Add::of<D>(D(D(a) * D(b)), c);
}
float fma32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
double fma64(double a, double b, double c) { return __builtin_fma(a, b, c); }
__attribute__((noinline)) float fma_down(float a, float b, float c) {
  const int before = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float x = a, y = b, z = c;
  volatile float r = __builtin_fmaf(x, y, z);
  std::fesetround(before);
  return r;
}
template <class T>
T shift_left(T a, uint32_t n) {
  return n >= sizeof(T) * 8 ? T(0) : T(Bits<T>(a) << n);
}
template <class T>
T shift_right(T a, uint32_t n) {
  if (n >= sizeof(T) * 8) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
  return T(a >> n);
}
template <class T>
T copy_sign(T sign, T value) {
  constexpr T kSign = T(1) << (8 * sizeof(T) - 1);
  return (sign & kSign) | (value & ~kSign);
}
uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selection) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t s = selection >> (4 * n) & 15;
    uint8_t byte = uint8_t(both >> (8 * (s & 7)));
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= uint32_t(byte) << (8 * n);
  }
  return r;
}
template <class T>
void insert_bits(Warp& w, const Instruction& i) {
  auto* d = out<T>(w, i.o[0]);
  const auto *a = in<T>(w, i.o[1]), *b = in<T>(w, i.o[2]);
  const auto *position = in<uint32_t>(w, i.o[3]), *length = in<uint32_t>(w, i.o[4]);
  lanes(w.exec, [&](int l) {
    const uint32_t at = position[l] & 0xff, count = length[l] & 0xff;
    T r = b[l];
    for (uint32_t n = 0; n < count && at + n < 8 * sizeof(T); ++n) {
      r &= ~(T(1) << (at + n));
      r |= ((a[l] >> n) & 1) << (at + n);
    }
    d[l] = r;
  });
}

Handler decode_float(Decoding& d) {
  const int b = d.type.bits;
  if (d.is({"add", "sub", "mul"}) && (d.plain || d.opcode == d.op() + ".rn" + (b == 32 ? ".f32" : ".f64"))) {
    d.widths({b, b, b});
    return d.op() == "add" ? binary_of<Add>(d.type) : d.op() == "sub" ? binary_of<Sub>(d.type) : binary_of<Mul>(d.type);
  }
  if (d.opcode == "div.rn.f32" || d.opcode == "div.rn.f64") return d.with({b, b, b}, binary_of<Div>(d.type));
  if (d.is({"min", "max"}) && d.plain) {
    d.widths({b, b, b});
    return d.op() == "min" ? binary_of<Min>(d.type) : binary_of<Max>(d.type);
  }
  if (d.op() == "copysign" && d.plain) {
    d.widths({b, b, b});
    return b == 32 ? Handler(binary<uint32_t, uint32_t, uint32_t, copy_sign<uint32_t>>)
                   : Handler(binary<uint64_t, uint64_t, uint64_t, copy_sign<uint64_t>>);
  }
  if (d.op() == "fma") {
    d.widths({b, b, b, b});
    if (d.opcode == "fma.rn.f32") return ternary<float, float, float, float, fma32>;
    if (d.opcode == "fma.rn.f64") return ternary<double, double, double, double, fma64>;
    if (d.opcode == "fma.rm.f32") return ternary<float, float, float, float, fma_down>;
    return nullptr;
  }
  if (d.is({"neg", "abs"}) && d.plain) {
    d.widths({b, b});
    if (d.op() == "neg") return b == 32 ? Handler(unary<float, float, negate<float>>) : unary<double, double, negate<double>>;
    return b == 32 ? Handler(unary<float, float, absolute<float>>) : unary<double, double, absolute<double>>;
  }
  if (b != 32 || !d.is({"ex2", "lg2", "rcp", "sqrt"})) return nullptr;
  d.widths({32, 32});
  if (d.opcode == "ex2.approx.f32") return unary<float, float, ex2>;
  if (d.opcode == "ex2.approx.ftz.f32") return unary<float, float, ex2_flushed>;
  if (d.opcode == "lg2.approx.ftz.f32") return unary<float, float, lg2_flushed>;
  if (d.opcode == "rcp.approx.ftz.f32") return unary<float, float, rcp_flushed>;
  if (d.opcode == "rcp.rn.f32") return unary<float, float, rcp>;
  if (d.opcode == "sqrt.rn.f32") return unary<float, float, root>;
  return nullptr;
}

Handler decode_wide(Decoding& d) {  // mul.wide and mad.wide: the result has twice the bits
  const int b = d.type.bits;
  const bool s = d.type.letter == 's';
  if (d.op() == "mul") {
    d.widths({2 * b, b, b});
    if (b == 32 && s) return binary<int64_t, int32_t, int32_t, wide_product<int64_t, int32_t>>;
    if (b == 32) return binary<uint64_t, uint32_t, uint32_t, wide_product<uint64_t, uint32_t>>;
    if (b == 16 && s) return binary<int32_t, int16_t, int16_t, wide_product<int32_t, int16_t>>;
    if (b == 16) return binary<uint32_t, uint16_t, uint16_t, wide_product<uint32_t, uint16_t>>;
  } else {
    d.widths({2 * b, b, b, 2 * b});
    if (b == 32 && s) return ternary<int64_t, int32_t, int32_t, int64_t, wide_multiply_add<int64_t, int32_t>>;
    if (b == 32) return ternary<uint64_t, uint32_t, uint32_t, uint64_t, wide_multiply_add<uint64_t, uint32_t>>;
  }
  return nullptr;
}

Handler decode_integer(Decoding& d) {
  const int b = d.type.bits;
  if (d.is({"mul", "mad"}) && d.has("wide")) return decode_wide(d);
  if (d.opcode.rfind("mad.lo.", 0) == 0) {
    d.widths({b, b, b, b});
    return for_integer(d.type, [](auto x) -> Handler {
      using T = decltype(x);
      return ternary<T, T, T, T, multiply_add<T>>;
    });
  }
  if (d.opcode.rfind("mul.", 0) == 0 && d.parts.size() == 3) {
    d.widths({b, b, b});
    if (d.has("lo")) return integer_binary_of<Mul>(d.type);
    return d.has("hi") && b >= 16 ? integer_binary_of<MulHigh>(d.type) : nullptr;
  }
  if (!d.plain) return nullptr;
  if (d.is({"add", "sub", "div", "rem", "min", "max", "and", "or", "xor"})) {
    d.widths({b, b, b});
    if (d.op() == "add") return integer_binary_of<Add>(d.type);
    if (d.op() == "sub") return integer_binary_of<Sub>(d.type);
    if (d.op() == "div") return integer_binary_of<Div>(d.type);
    if (d.op() == "rem") return integer_binary_of<Rem>(d.type);
    if (d.op() == "min") return integer_binary_of<Min>(d.type);
    if (d.op() == "max") return integer_binary_of<Max>(d.type);
    if (d.op() == "and") return integer_binary_of<And>(d.type);
    return d.op() == "or" ? integer_binary_of<Or>(d.type) : integer_binary_of<Xor>(d.type);
  }
  if (d.is({"neg", "abs", "not"})) {
    d.widths({b, b});
    return for_integer(d.type, [&](auto x) -> Handler {
      using T = decltype(x);
      return d.op() == "neg"   ? Handler(unary<T, T, negate<T>>)
             : d.op() == "not" ? unary<T, T, complement<T>>
                               : unary<T, T, absolute<T>>;
    });
  }
  if (d.is({"shl", "shr"})) {
    d.widths({b, b, 32});
    return for_integer(d.type, [&](auto x) -> Handler {
      using T = decltype(x);
      return d.op() == "shl" ? Handler(binary<T, T, uint32_t, shift_left<T>>) : binary<T, T, uint32_t, shift_right<T>>;
    });
  }
  if (d.opcode == "popc.b32") return d.with({32, 32}, unary<uint32_t, uint32_t, ones>);
  if (d.opcode == "prmt.b32") {
    d.widths({32, 32, 32, 32});
    return ternary<uint32_t, uint32_t, uint32_t, uint32_t, permute_bytes>;
  }
  if (d.op() == "bfi") {
    d.widths({b, b, b, 32, 32});
    return b == 64 ? insert_bits<uint64_t> : insert_bits<uint32_t>;
  }
  return nullptr;
}

}  // namespace

Handler decode_arithmetic(Decoding& d) {
  if (d.type.letter == 'f') return decode_float(d);
  if (d.type.letter == 'p' || d.type.letter == 0) return nullptr;
  return decode_integer(d);
}

}  // namespace xlstm::ptx
