// current_device.cu - the limits of the device that launches go to; no kernel here, but CUDA or the executor to ask.
#include "device/limits.cuh"
#include "slstm/choice.h"

namespace xlstm::slstm {

DeviceLimits current_device() {
  const device::Limits limits = device::current_limits();
  return {limits.architecture, limits.processors, limits.shared_per_block};
}

}  // namespace xlstm::slstm
