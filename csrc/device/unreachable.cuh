// unreachable.cuh - the end of a choice whose cases are all above it. On a CPU it throws; nvcc may leave the branch out, since
// launchers check the value before.
#pragma once
#include <stdexcept>

#include "device/language.cuh"

namespace xlstm::device {

[[noreturn]] XLSTM_DEVICE void unreachable(const char* what) {
#ifdef __CUDACC__
  (void)what;
  __builtin_unreachable();
#else
  throw std::logic_error(what);
#endif
}

}  // namespace xlstm::device
