// grid/counters.cu - sets the counters of a grid launch to zero; a launch of its own, before the blocks that count.
#include "slstm/grid/counters.cuh"

#include "device/launch.cuh"

namespace xlstm::slstm {
namespace {

__global__ void zero_kernel(uint32_t* counters, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) counters[i] = 0;
}

}  // namespace

void zero_grid_counters(void* counters, int64_t bytes, Stream stream) {
  const int64_t count = bytes / int64_t(sizeof(uint32_t));
  device::LaunchConfig config;
  config.block = dim3(256);
  config.grid = dim3(unsigned((count + 255) / 256));
  config.stream = stream.handle;
  config.device = stream.device;
  device::launch(config, "slstm_grid_zero", zero_kernel, static_cast<uint32_t*>(counters), count);
}

}  // namespace xlstm::slstm
