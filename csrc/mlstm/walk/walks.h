// walks.h - the walks by use: from the enum to a template argument, and what walk.cu calls.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "mlstm/params.h"

namespace xlstm::mlstm {

template <WalkUse USE>
constexpr const char* kWalkName = nullptr;
template <>
inline constexpr const char* kWalkName<WalkUse::H> = "mlstm_walk_h";
template <>
inline constexpr const char* kWalkName<WalkUse::DQ> = "mlstm_walk_dq";
template <>
inline constexpr const char* kWalkName<WalkUse::DK> = "mlstm_walk_dk";
template <>
inline constexpr const char* kWalkName<WalkUse::DV> = "mlstm_walk_dv";

// visit(std::integral_constant<WalkUse, ...>)
template <class Visit>
auto with_use(WalkUse use, Visit&& visit) {
  switch (use) {
    case WalkUse::H:
      return visit(std::integral_constant<WalkUse, WalkUse::H>{});
    case WalkUse::DQ:
      return visit(std::integral_constant<WalkUse, WalkUse::DQ>{});
    case WalkUse::DK:
      return visit(std::integral_constant<WalkUse, WalkUse::DK>{});
    case WalkUse::DV:
      return visit(std::integral_constant<WalkUse, WalkUse::DV>{});
  }
  throw std::invalid_argument("mlstm: use of a walk: got " + std::to_string(int(use)) + ", expected 0 to 3");
}

// In 16 bits, one use a translation unit (instantiations/). shared_memory: of a block, in bytes; it chooses the tile.
template <WalkUse USE>
void walk_16_bits(const WalkParams& params, int L, int shared_memory, Stream stream);
// In float32, float32.cu.
void walk_float32(const WalkParams& params, Stream stream);

}  // namespace xlstm::mlstm
