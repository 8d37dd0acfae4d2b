#include "cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace xlstm::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};
constexpr std::array<const char*, 3> kNames = {"baseline", "avx2", "avx512"};  // in the same order

bool supported(Isa isa) {
#ifdef XLSTM_X86_64
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

Isa fastest() {
  Isa best = Isa::kBaseline;
  for (const Isa isa : kIsas) {
    if (supported(isa)) best = isa;
  }
  return best;
}

Isa by_name(const std::string& name) {
  if (name.empty()) return fastest();
  std::string usable;
  for (const Isa isa : kIsas) {
    if (!supported(isa)) continue;
    if (isa_name(isa) == name) return isa;
    usable += (usable.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("XLSTM_CPU_ISA: got '" + name + "', expected one of: " + usable);
}

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

}  // namespace

std::string isa_name(Isa isa) { return kNames.at(static_cast<size_t>(isa)); }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa isa : kIsas) {
    if (supported(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

Isa selected_isa() {
  const int isa = chosen;
  if (isa != kUnset) return static_cast<Isa>(isa);
  const char* name = std::getenv("XLSTM_CPU_ISA");
  const Isa first = by_name(name ? name : "");
  chosen = static_cast<int>(first);
  return first;
}

void select_isa(const std::string& name) {
  if (name.empty()) {
    chosen = kUnset;
  } else {
    chosen = static_cast<int>(by_name(name));
  }
}

}  // namespace xlstm::cpu
