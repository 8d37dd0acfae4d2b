// missing_kernels.cpp - entry points whose kernels this build does not have: weak, so that a kernel replaces its own.
#include <stdexcept>
#include <string>

#include "slstm/kernels.h"

namespace xlstm::slstm {
namespace {

[[noreturn]] void missing(const char* kind, int64_t DH) {
  throw std::invalid_argument(std::string("slstm: DH: got ") + std::to_string(DH) + ", which the " + kind +
                              " kernel would serve; this build has the resident kernel alone (DH up to 128, float32 up to 64)");
}

}  // namespace

#define XLSTM_MISSING __attribute__((weak))
XLSTM_MISSING void cluster_forward(const KernelForward& p, const DeviceLimits&, void*) { missing("cluster", p.shape.DH); }
XLSTM_MISSING void cluster_backward(const KernelBackward& p, const DeviceLimits&, void*) { missing("cluster", p.shape.DH); }
XLSTM_MISSING void grid_forward(const KernelForward& p, const DeviceLimits&, void*) { missing("grid", p.shape.DH); }
XLSTM_MISSING void grid_backward(const KernelBackward& p, const DeviceLimits&, void*) { missing("grid", p.shape.DH); }

}  // namespace xlstm::slstm
