// isa.h - which vector units the CPU kernels use.  The same kernel file is compiled once per entry of this list.
#pragma once
#include <string>
#include <vector>

namespace xlstm::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The names this CPU can run, slowest first: "baseline", "avx2", "avx512".
std::vector<std::string> supported_isas();

// The fastest supported one, or the one named by the environment variable XLSTM_CPU_ISA when this was first called.
// An unknown or unsupported name is a std::invalid_argument.
Isa selected_isa();

// The function of the selected instruction set, which is compiled once in each of their namespaces: XLSTM_OF_ISA(run<Real>).
#ifdef XLSTM_X86_64
#define XLSTM_OF_ISA(...)                                                            \
  (::xlstm::cpu::selected_isa() == ::xlstm::cpu::Isa::kAvx512 ? &avx512::__VA_ARGS__ \
   : ::xlstm::cpu::selected_isa() == ::xlstm::cpu::Isa::kAvx2 ? &avx2::__VA_ARGS__   \
                                                              : &baseline::__VA_ARGS__)
#else
#define XLSTM_OF_ISA(...) (&baseline::__VA_ARGS__)
#endif

// Declarations in each of those namespaces.
#define XLSTM_IN_EVERY_ISA(...) \
  namespace baseline {          \
  __VA_ARGS__                   \
  }                             \
  namespace avx2 {              \
  __VA_ARGS__                   \
  }                             \
  namespace avx512 {            \
  __VA_ARGS__                   \
  }

// Overrides the choice; "" returns to the default.
void select_isa(const std::string& name);
std::string isa_name(Isa isa);

}  // namespace xlstm::cpu
