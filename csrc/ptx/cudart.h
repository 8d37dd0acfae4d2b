// cudart.h - what the module tells the stand-in of the CUDA runtime.
#pragma once
#include <string>
#include <vector>

#include "ptx/machine.h"

namespace xlstm::ptx {

std::vector<std::string> targets();  // the PTX in this program: 80, 90a, ...
uint64_t launches();                 // that have run to their end

// One launch of a kernel in PTX that is given as text; `parameters` as in its .param list. Throws Fault.
struct Shape {
  uint32_t grid = 1, block = 32, cluster = 1, shared_bytes = 0;
  bool cooperative = false;
};
void run_text(const std::string& text, const std::string& kernel, const Shape& shape, const std::vector<uint8_t>& parameters);

}  // namespace xlstm::ptx
