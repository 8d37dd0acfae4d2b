// lanes.h - how a handler reaches its operands, and the shapes that most handlers have.
#pragma once
#include <bit>
#include <type_traits>

#include "ptx/machine.h"

namespace xlstm::ptx {

template <class T>
using Storage = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
T get(Storage<T> v) {
  if constexpr (std::is_floating_point_v<T>)
    return std::bit_cast<T>(v);
  else
    return T(v);
}

template <class T>
Storage<T> put(T v) {
  if constexpr (std::is_floating_point_v<T>)
    return std::bit_cast<Storage<T>>(v);
  else
    return Storage<T>(std::make_unsigned_t<T>(v));
}

template <class T>
const Storage<T>* in(const Warp& w, const Operand& o) {
  return reinterpret_cast<const Storage<T>*>(w.base[o.base] + o.offset);
}

template <class T>
Storage<T>* out(Warp& w, const Operand& o) {
  return reinterpret_cast<Storage<T>*>(w.base[0] + o.offset);
}

// visit(lane) for every lane of the mask; the full warp is a loop that g++ makes vectors of.
template <class Visit>
inline void lanes(uint32_t mask, Visit visit) {
  if (mask == 0xffffffffu) {
    for (int l = 0; l < 32; ++l) visit(l);
  } else {
    for (; mask; mask &= mask - 1) visit(__builtin_ctz(mask));
  }
}

inline uint32_t predicate(const Warp& w, const Operand& o) {
  const uint32_t v = o.kind == Operand::Immediate ? (o.immediate ? 0xffffffffu : 0u) : w.base[0][o.offset];
  return o.negated ? ~v : v;
}

inline void set_predicate(Warp& w, const Operand& o, uint32_t v) {
  if (o.kind == Operand::Sink) return;
  uint32_t& mask = w.base[0][o.offset];
  mask = (mask & ~w.exec) | (v & w.exec);
}

template <class D, class A, auto F>
void unary(Warp& w, const Instruction& i) {
  auto* d = out<D>(w, i.o[0]);
  auto* a = in<A>(w, i.o[1]);
  lanes(w.exec, [&](int l) { d[l] = put<D>(F(get<A>(a[l]))); });
}

template <class D, class A, class B, auto F>
void binary(Warp& w, const Instruction& i) {
  auto* d = out<D>(w, i.o[0]);
  auto* a = in<A>(w, i.o[1]);
  auto* b = in<B>(w, i.o[2]);
  lanes(w.exec, [&](int l) { d[l] = put<D>(F(get<A>(a[l]), get<B>(b[l]))); });
}

template <class D, class A, class B, class C, auto F>
void ternary(Warp& w, const Instruction& i) {
  auto* d = out<D>(w, i.o[0]);
  auto* a = in<A>(w, i.o[1]);
  auto* b = in<B>(w, i.o[2]);
  auto* c = in<C>(w, i.o[3]);
  lanes(w.exec, [&](int l) { d[l] = put<D>(F(get<A>(a[l]), get<B>(b[l]), get<C>(c[l]))); });
}

}  // namespace xlstm::ptx
