// convert.cpp - cvt: between float formats, to and from integers, and integers of other widths.
#include <cmath>

#include "ptx/decode.h"
#include "ptx/lanes.h"
#include "ptx/number_formats.h"

namespace xlstm::ptx {
namespace {

float saturate(float x) { return std::isnan(x) ? 0.f : x < 0.f ? 0.f : x > 1.f ? 1.f : x + 0.f; }

int32_t truncate(float x) {
  if (std::isnan(x)) return 0;
  return x >= 2147483648.f ? 2147483647 : x <= -2147483648.f ? int32_t(0x80000000u) : int32_t(x);
}

float nearest(float x) { return std::nearbyint(x); }

template <class To, class From>
To cast(From x) {
  return To(x);
}

uint32_t pair_bf16(float high, float low) { return uint32_t(to_bf16(high)) << 16 | to_bf16(low); }
uint32_t pair_f16(float high, float low) { return uint32_t(to_f16(high)) << 16 | to_f16(low); }

struct Conversion {
  const char* name;
  int to_bits, from_bits;
  Handler handler;
};

const Conversion kConversions[] = {
    {"rn.bf16.f32", 16, 32, unary<uint16_t, float, to_bf16>},
    {"rn.f16.f32", 16, 32, unary<uint16_t, float, to_f16>},
    {"f32.bf16", 32, 16, unary<float, uint16_t, from_bf16>},
    {"f32.f16", 32, 16, unary<float, uint16_t, from_f16>},
    {"rna.tf32.f32", 32, 32, unary<uint32_t, float, to_tf32>},
    {"sat.f32.f32", 32, 32, unary<float, float, saturate>},
    {"rni.f32.f32", 32, 32, unary<float, float, nearest>},
    {"rzi.s32.f32", 32, 32, unary<int32_t, float, truncate>},
    {"f64.f32", 64, 32, unary<double, float, cast<double, float>>},
    {"rn.f32.f64", 32, 64, unary<float, double, cast<float, double>>},
    {"rn.f32.s32", 32, 32, unary<float, int32_t, cast<float, int32_t>>},
    {"rn.f32.u32", 32, 32, unary<float, uint32_t, cast<float, uint32_t>>},
    {"rn.f32.s64", 32, 64, unary<float, int64_t, cast<float, int64_t>>},
    {"rn.f32.u64", 32, 64, unary<float, uint64_t, cast<float, uint64_t>>},
};

// Register is the storage that a source operand has: a 64-bit register may hold a narrower type, whose low bits count.
template <class To, class From, class Register>
To through(Register x) {
  return To(From(x));
}
template <class To, class Register>
Handler from(const Type& t) {
  const auto make = [](auto x) -> Handler {
    using From = decltype(x);
    return unary<To, Register, through<To, From, Register>>;
  };
  if (t.bits == 8) return t.letter == 's' ? make(int8_t{}) : make(uint8_t{});
  return for_integer(t, make);
}
template <class To>
Handler from_any(const Type& t, bool wide_register) {
  return wide_register ? from<To, uint64_t>(t) : from<To, uint32_t>(t);
}

// d.type is the source's, `to` the destination's. A destination register that is wider than its type gets the value extended.
Handler decode_integers(Decoding& d, const Type& to) {
  Operand &result = d.i.o[0], &source = d.i.o[1];
  const bool wide_source = source.width == 8;
  if (source.kind == Operand::Immediate) d.width(1, d.type.bits);
  if (result.kind != Operand::Register || (d.type.bits == 64) > wide_source) d.unknown();
  if (to.bits == 64 && result.width != 8) d.unknown();
  if (result.width == 8) {
    if (to.bits != 64) d.unknown();
    return to.letter == 's' ? from_any<int64_t>(d.type, wide_source) : from_any<uint64_t>(d.type, wide_source);
  }
  if (to.bits == 32) return to.letter == 's' ? from_any<int32_t>(d.type, wide_source) : from_any<uint32_t>(d.type, wide_source);
  if (to.bits == 16) return to.letter == 's' ? from_any<int16_t>(d.type, wide_source) : from_any<uint16_t>(d.type, wide_source);
  // cvt.u8.u32 and its like: the low byte, extended
  if (wide_source || d.type.bits == 8) d.unknown();
  return to.letter == 's' ? Handler(unary<int32_t, uint32_t, through<int32_t, int8_t, uint32_t>>)
                          : Handler(unary<uint32_t, uint32_t, through<uint32_t, uint8_t, uint32_t>>);
}

}  // namespace

Handler decode_convert(Decoding& d) {
  if (d.op() != "cvt") return nullptr;
  const std::string rest = d.opcode.substr(4);
  if (rest == "rn.bf16x2.f32") return d.with({32, 32, 32}, binary<uint32_t, float, float, pair_bf16>);
  if (rest == "rn.f16x2.f32") return d.with({32, 32, 32}, binary<uint32_t, float, float, pair_f16>);
  for (const Conversion& c : kConversions)
    if (rest == c.name) return d.with({c.to_bits, c.from_bits}, c.handler);
  Type to;
  if (d.parts.size() != 3 || d.i.o.size() != 2 || !type_of(d.parts[1], to) || !type_of(d.parts[2], d.type)) return nullptr;
  return d.type.letter == 'f' || to.letter == 'f' ? nullptr : decode_integers(d, to);
}

}  // namespace xlstm::ptx
