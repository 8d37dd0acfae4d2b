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

// Overrides the choice; "" returns to the default.
void select_isa(const std::string& name);
std::string isa_name(Isa isa);

}  // namespace xlstm::cpu
