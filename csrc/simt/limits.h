// limits.h - what a launch may ask of each GPU architecture, so that a kernel which only fits an H100 is caught without one.
#pragma once
#include "simt/executor.h"

namespace xlstm::simt {

struct Architecture {
  int number;               // 90 is sm_90
  int code;                 // the architecture of a wheel's code that runs here
  size_t shared_per_block;  // opt-in maximum, static and dynamic together
  size_t shared_per_multiprocessor;
  int threads_per_multiprocessor, blocks_per_multiprocessor, multiprocessors;
};
const Architecture& architecture(int number);  // throws Error for one that is not in the table

// Throws Error when the launch cannot run on the architecture.
void check_launch(const LaunchConfig& config, const char* kernel, const Architecture& on);
// Fails the running kernel unless the selected architecture has the instruction.
void require_architecture(int number, const char* instruction, const Site& site);

}  // namespace xlstm::simt
