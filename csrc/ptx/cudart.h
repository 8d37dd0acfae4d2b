// cudart.h - what the module tells the stand-in of the CUDA runtime.
#pragma once
#include <string>
#include <vector>

#include "ptx/machine.h"

namespace xlstm::ptx {

std::vector<std::string> targets();  // the PTX in this program: 80, 90a, ...
uint64_t launches();                 // that have run to their end

constexpr int kDevices = 64;  // a test can have one that no launch has seen
int current_device();         // of this thread
void set_current_device(int index);

struct Call {
  std::string function;  // of the runtime; MaxDynamicSharedMemorySize where cudaFuncSetAttribute sets that
  int device;            // the current one
  std::string kernel;    // its name in PTX
  int64_t value;         // the device, error or bytes of shared memory that it is about
};
std::vector<Call> calls();                               // the last ones (at most 1000) since this was asked
void fail_next(const std::string& function, int error);  // the function's next call fails, and does nothing
void hold_clusters(int device, bool holds);              // false: no cluster fits this device

// One launch of a kernel in PTX that is given as text; `parameters` as in its .param list. Throws Fault.
struct Shape {
  uint32_t grid = 1, block = 32, cluster = 1, shared_bytes = 0;
  bool cooperative = false;
};
void run_text(const std::string& text, const std::string& kernel, const Shape& shape, const std::vector<uint8_t>& parameters);

}  // namespace xlstm::ptx
