// launch.cuh - the only way a kernel is launched: grid, block, dynamic shared memory, stream, cluster, cooperative.
// A launch that fails throws std::runtime_error with the kernel's name, CUDA's own words and the shape that was asked for.
#pragma once
#include "device/kernel.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#else
#include "simt/kernel_api.h"
#endif

namespace xlstm::device {

#ifdef __CUDACC__

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  void* stream = nullptr;
  dim3 cluster = dim3(1, 1, 1);
  bool cooperative = false;
  int device = -1;  // index of the device; -1: the current one
};

inline std::string describe(const LaunchConfig& c) {
  const auto shape = [](dim3 d) {
    return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
  };
  return "grid " + shape(c.grid) + ", block " + shape(c.block) + ", cluster " + shape(c.cluster) + ", " +
         std::to_string(c.shared_bytes) + " bytes of dynamic shared memory";
}

// The most shared memory that a block can ask for on the current device, in bytes.
inline int shared_memory_limit() {
  int device = 0, bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) return bytes;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string("xlstm_cuda: shared memory of the device: ") + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error));
}

template <class... P, class... A>
void launch(const LaunchConfig& config, const char* name, void (*kernel)(P...), A&&... args) {
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;  // what every GPU with clusters holds; more must be asked for
  const unsigned cluster_blocks = config.cluster.x * config.cluster.y * config.cluster.z;
  const bool clustered = cluster_blocks > 1;
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (clustered) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster.x;
    attributes[count].val.clusterDim.y = config.cluster.y;
    attributes[count++].val.clusterDim.z = config.cluster.z;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = static_cast<cudaStream_t>(config.stream);
  launch_config.attrs = attributes;
  launch_config.numAttrs = count;
  cudaError_t error = cudaSuccess;
  if (config.device >= 0) error = cudaSetDevice(config.device);
  if (error == cudaSuccess && config.shared_bytes > kDefaultSharedBytes)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(config.shared_bytes));
  if (error == cudaSuccess && cluster_blocks > kPortableCluster)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&launch_config, kernel, static_cast<P>(args)...);
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // the error is reported here and must not come back from the next call
  throw std::runtime_error(std::string("xlstm_cuda: ") + name + ": " + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error) + " (" + describe(config) + ")");
}

// How many blocks of this shape one processor holds at once.
template <class... P>
int resident_blocks(const LaunchConfig& config, void (*kernel)(P...)) {
  int blocks = 0;
  const auto* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, int(config.block.x), config.shared_bytes);
  if (error != cudaSuccess) (void)cudaGetLastError();  // a block that is too large for any processor
  return blocks;
}

#else

using simt::launch;
using simt::LaunchConfig;
using simt::resident_blocks;
using simt::shared_memory_limit;  // of the architecture in the options

#endif

}  // namespace xlstm::device
