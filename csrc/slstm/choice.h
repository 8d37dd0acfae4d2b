// choice.h - which kernel serves a head dim: one table, asked before every launch and printed by `python -m xlstm_cuda info`.
#pragma once
#include <string>
#include <vector>

#include "slstm/kernels.h"

namespace xlstm::slstm {

// One line: the kernel of every head dim up to `max_DH` that no line above it serves.
struct Choice {
  KernelKind kind;
  int max_DH;
  int element_bytes;     // 4: float32; 2: the 16-bit types
  int architecture;      // sm_ number, at least
  int shared_per_block;  // bytes of shared memory, at least
};
const std::vector<Choice>& choices();
int bytes_of(ElementType element);

// On the current device, whose limits these are. std::invalid_argument for a head dim that no kernel holds there.
KernelKind choose(int64_t DH, ElementType element, const DeviceLimits& limits);

const char* kind_name(KernelKind kind);

DeviceLimits current_device();             // of the device that launches go to
DeviceLimits limits_with(int processors);  // the same with so many processors; 0: all

}  // namespace xlstm::slstm
