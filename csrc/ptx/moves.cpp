// moves.cpp - predicates (setp, selp, and, or, not) and mov, which also packs and unpacks registers.
#include <cmath>

#include "ptx/decode.h"
#include "ptx/lanes.h"

namespace xlstm::ptx {
namespace {

enum Comparison { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NOT_A_NUMBER };

template <class T, int C>
bool compare(T a, T b) {
  bool unordered = false;
  if constexpr (std::is_floating_point_v<T>) unordered = std::isnan(a) || std::isnan(b);
  if constexpr (C == EQ) return a == b;
  if constexpr (C == NE) return !unordered && a != b;
  if constexpr (C == LT) return a < b;
  if constexpr (C == LE) return a <= b;
  if constexpr (C == GT) return a > b;
  if constexpr (C == GE) return a >= b;
  if constexpr (C == EQU) return unordered || a == b;
  if constexpr (C == NEU) return unordered || a != b;
  if constexpr (C == LTU) return unordered || a < b;
  if constexpr (C == LEU) return unordered || a <= b;
  if constexpr (C == GTU) return unordered || a > b;
  if constexpr (C == GEU) return unordered || a >= b;
  if constexpr (C == NUM) return !unordered;
  if constexpr (C == NOT_A_NUMBER) return unordered;
}

template <class T, int C>
void set_predicate_if(Warp& w, const Instruction& i) {
  const auto *a = in<T>(w, i.o[1]), *b = in<T>(w, i.o[2]);
  uint32_t mask = 0;
  lanes(w.exec, [&](int l) { mask |= uint32_t(compare<T, C>(get<T>(a[l]), get<T>(b[l]))) << l; });
  set_predicate(w, i.o[0], mask);
}

template <class T>
Handler comparison(const std::string& name) {
  if (name == "eq") return set_predicate_if<T, EQ>;
  if (name == "ne") return set_predicate_if<T, NE>;
  if (name == "lt" || name == "lo") return set_predicate_if<T, LT>;
  if (name == "le" || name == "ls") return set_predicate_if<T, LE>;
  if (name == "gt" || name == "hi") return set_predicate_if<T, GT>;
  if (name == "ge" || name == "hs") return set_predicate_if<T, GE>;
  if constexpr (std::is_floating_point_v<T>) {
    if (name == "equ") return set_predicate_if<T, EQU>;
    if (name == "neu") return set_predicate_if<T, NEU>;
    if (name == "ltu") return set_predicate_if<T, LTU>;
    if (name == "leu") return set_predicate_if<T, LEU>;
    if (name == "gtu") return set_predicate_if<T, GTU>;
    if (name == "geu") return set_predicate_if<T, GEU>;
    if (name == "num") return set_predicate_if<T, NUM>;
    if (name == "nan") return set_predicate_if<T, NOT_A_NUMBER>;
  }
  return nullptr;
}

void both(Warp& w, const Instruction& i) { set_predicate(w, i.o[0], predicate(w, i.o[1]) & predicate(w, i.o[2])); }
void either(Warp& w, const Instruction& i) { set_predicate(w, i.o[0], predicate(w, i.o[1]) | predicate(w, i.o[2])); }
void one_of(Warp& w, const Instruction& i) { set_predicate(w, i.o[0], predicate(w, i.o[1]) ^ predicate(w, i.o[2])); }
void opposite(Warp& w, const Instruction& i) { set_predicate(w, i.o[0], ~predicate(w, i.o[1])); }
void same(Warp& w, const Instruction& i) { set_predicate(w, i.o[0], predicate(w, i.o[1])); }

template <class T>
void select(Warp& w, const Instruction& i) {
  auto* d = out<T>(w, i.o[0]);
  const auto *a = in<T>(w, i.o[1]), *b = in<T>(w, i.o[2]);
  const uint32_t p = predicate(w, i.o[3]);
  lanes(w.exec, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

template <class T>
T identity(T x) {
  return x;
}

void parameter_address(Warp& w, const Instruction& i) {
  auto* d = out<uint64_t>(w, i.o[0]);
  const uint64_t v = reinterpret_cast<uint64_t>(current->parameters.data()) + uint64_t(i.o[1].immediate);
  lanes(w.exec, [&](int l) { d[l] = v; });
}

void clock_time(Warp& w, const Instruction& i) {
  auto* d = out<uint64_t>(w, i.o[0]);
  lanes(w.exec, [&](int l) { d[l] = current->nanoseconds; });
}

template <int From, int To>  // pieces of From bytes into one of To
void pack(Warp& w, const Instruction& i) {
  lanes(w.exec, [&](int l) {
    uint64_t v = 0;
    for (int n = 0; n < To / From; ++n) {
      uint64_t piece = in<uint32_t>(w, i.o[1 + n])[l];
      if (From == 2) piece &= 0xffff;
      v |= piece << (8 * From * n);
    }
    if (To == 8)
      out<uint64_t>(w, i.o[0])[l] = v;
    else
      out<uint32_t>(w, i.o[0])[l] = uint32_t(v);
  });
}

template <int From, int To>
void unpack(Warp& w, const Instruction& i) {
  constexpr int kPieces = From / To;
  lanes(w.exec, [&](int l) {
    const uint64_t v = From == 8 ? in<uint64_t>(w, i.o[kPieces])[l] : in<uint32_t>(w, i.o[kPieces])[l];
    for (int n = 0; n < kPieces; ++n) {
      if (i.o[n].kind == Operand::Sink) continue;
      out<uint32_t>(w, i.o[n])[l] = uint32_t(v >> (8 * To * n)) & (To == 2 ? 0xffffu : 0xffffffffu);
    }
  });
}

Handler decode_mov(Decoding& d) {
  Instruction& i = d.i;
  const int b = d.type.bits;
  if (i.o.size() == 2) {
    if (i.o[1].kind == Operand::Clock) {
      d.width(0, 64);
      return clock_time;
    }
    if (i.o[1].kind == Operand::Immediate && i.o[1].parameter) {
      d.width(0, 64);
      return parameter_address;
    }
    d.widths({b, b});
    return b == 64 ? Handler(unary<uint64_t, uint64_t, identity<uint64_t>>) : unary<uint32_t, uint32_t, identity<uint32_t>>;
  }
  const size_t pieces = i.o.size() - 1, brace = i.text.find('{');
  const bool unpacks = brace != std::string::npos && brace < i.text.find(',');
  for (size_t n = 0; n < pieces; ++n) d.width(unpacks ? n : 1 + n, 32);
  d.width(unpacks ? pieces : 0, b);
  if (unpacks) i.results = uint8_t(pieces);
  if (b == 64 && pieces == 2) return unpacks ? unpack<8, 4> : pack<4, 8>;
  if (b == 64 && pieces == 4) return unpacks ? unpack<8, 2> : pack<2, 8>;
  if (b == 32 && pieces == 2) return unpacks ? unpack<4, 2> : pack<2, 4>;
  return nullptr;
}

}  // namespace

Handler decode_move(Decoding& d) {
  const int b = d.type.bits;
  if (d.type.letter == 'p' && d.plain) {
    if (d.op() == "and") return both;
    if (d.op() == "or") return either;
    if (d.op() == "xor") return one_of;
    if (d.op() == "not") return opposite;
    if (d.op() == "mov") return same;
  }
  if (d.op() == "setp" && d.parts.size() == 3 && d.i.o.size() == 3) {
    d.width(1, b);
    d.width(2, b);
    return for_any(d.type, [&](auto x) { return comparison<decltype(x)>(d.parts[1]); });
  }
  if (d.op() == "selp" && d.plain) {
    for (size_t n = 0; n < 3; ++n) d.width(n, b);
    d.i.undefined = Undefined::Select;
    return b == 64 ? Handler(select<uint64_t>) : select<uint32_t>;
  }
  if (d.op() == "mov" && d.plain) return decode_mov(d);
  if (d.op() == "st" && d.has("param") && d.i.o.size() == 2) {  // an argument of a call: a register of its own
    d.i.o[0].kind = Operand::Register;
    d.widths({b, b});
    return b == 64 ? Handler(unary<uint64_t, uint64_t, identity<uint64_t>>) : unary<uint32_t, uint32_t, identity<uint32_t>>;
  }
  return nullptr;
}

}  // namespace xlstm::ptx
