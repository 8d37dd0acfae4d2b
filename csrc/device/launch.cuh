// launch.cuh - the only way a kernel is launched: grid, block, dynamic shared memory, stream, cluster, cooperative, device.
// A launch that fails throws std::runtime_error with the kernel's name, CUDA's own words and the shape that was asked for.
// Threads may launch at the same time: what CUDA keeps per kernel and device (attributes) is set under a lock and only grows.
#pragma once
#include "device/kernel.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#else
#include <algorithm>

#include "simt/kernel_api.h"
#include "simt/limits.h"
#endif

namespace xlstm::device {

#ifdef __CUDACC__

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  void* stream = nullptr;
  dim3 cluster = dim3(1, 1, 1);
  bool cooperative = false;
  int device = -1;  // to launch on; -1: the current one
};

inline std::string describe(const LaunchConfig& c) {
  const auto shape = [](dim3 d) {
    return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
  };
  return "grid " + shape(c.grid) + ", block " + shape(c.block) + ", cluster " + shape(c.cluster) + ", " +
         std::to_string(c.shared_bytes) + " bytes of dynamic shared memory";
}

// Throws unless the call went well. An error that is reported here must not come back from the next call.
inline void check(cudaError_t error, const std::string& what, const std::string& asked = "") {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error("xlstm_cuda: " + what + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error) + asked);
}

// Makes a device the current one as long as it lives; -1 leaves the current one.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "the current device");
    index = device < 0 ? before_ : device;
    if (index != before_) check(cudaSetDevice(index), "device " + std::to_string(index));
  }
  ~OnDevice() {
    if (index != before_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  int index;

 private:
  int before_ = 0;
};

// The most shared memory that a block can ask for on the current device, in bytes.
inline int shared_memory_limit() {
  int bytes = 0;
  const OnDevice current(-1);
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, current.index), "shared memory of the device");
  return bytes;
}

// The architecture whose code runs the kernel on the current device: 86 is compute_86, as cubin (also on sm_87) or as PTX.
// Asked once per device and kernel; the capability is in the key because the interpreter of PTX plays several GPUs in turn.
inline int code_architecture(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, const void*>, int> known;
  const OnDevice current(-1);
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, current.index), "capability of the device");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, current.index), "capability of the device");
  const std::tuple<int, int, const void*> key(current.index, 10 * major + minor, kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "the kernels of this build on the device");
  if (attributes.ptxVersion <= 0)
    throw std::runtime_error("xlstm_cuda: architecture of a kernel's code: got " + std::to_string(attributes.ptxVersion) +
                             ", expected that of its PTX, such as 90");
  return known[key] = attributes.ptxVersion;
}

// The most shared memory that a block can have on the current device in a kernel of this code, in bytes.
inline int shared_memory_limit_of_code(const void* kernel) {
  return std::min(shared_memory_limit(), most_shared_memory(code_architecture(kernel)));
}

namespace detail {

// Allows the kernel on the current device as much dynamic shared memory, and as large a cluster, as the launch asks for. Never
// less than before: another thread may be about to launch the kernel with more.
inline cudaError_t allow(const LaunchConfig& config, int device, const void* kernel) {
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;  // what every GPU with clusters holds; more must be asked for
  struct Allowed {
    size_t shared_bytes = kDefaultSharedBytes;
    unsigned cluster_blocks = kPortableCluster;
  };
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, Allowed> all;
  const std::lock_guard<std::mutex> lock(mutex);
  Allowed& allowed = all[{device, kernel}];
  if (config.shared_bytes > allowed.shared_bytes) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.shared_bytes));
    if (error != cudaSuccess) return error;
    allowed.shared_bytes = config.shared_bytes;
  }
  const unsigned cluster_blocks = config.cluster.x * config.cluster.y * config.cluster.z;
  if (cluster_blocks > allowed.cluster_blocks) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
    allowed.cluster_blocks = cluster_blocks;
  }
  return cudaSuccess;
}

struct CudaConfig {  // the launch in CUDA's words; points into itself
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t launch{};
  explicit CudaConfig(const LaunchConfig& config) {
    unsigned count = 0;
    if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim.x = config.cluster.x;
      attributes[count].val.clusterDim.y = config.cluster.y;
      attributes[count++].val.clusterDim.z = config.cluster.z;
    }
    if (config.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count++].val.cooperative = 1;
    }
    launch.gridDim = config.grid;
    launch.blockDim = config.block;
    launch.dynamicSmemBytes = config.shared_bytes;
    launch.stream = static_cast<cudaStream_t>(config.stream);
    launch.attrs = attributes;
    launch.numAttrs = count;
  }
  CudaConfig(const CudaConfig&) = delete;
  CudaConfig& operator=(const CudaConfig&) = delete;
};

}  // namespace detail

template <class... P, class... A>
void launch(const LaunchConfig& config, const char* name, void (*kernel)(P...), A&&... args) {
  const OnDevice on(config.device);
  const detail::CudaConfig cuda(config);
  cudaError_t error = detail::allow(config, on.index, reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&cuda.launch, kernel, static_cast<P>(args)...);
  if (error != cudaSuccess) check(error, name, " (" + describe(config) + ")");
}

// How many blocks of this shape one processor of the device holds at once; 0 for a shape that no processor holds.
template <class... P>
int resident_blocks(const LaunchConfig& config, void (*kernel)(P...)) {
  const OnDevice on(config.device);
  const auto* function = reinterpret_cast<const void*>(kernel);
  int blocks = 0;
  cudaError_t error = detail::allow(config, on.index, function);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, int(config.block.x), config.shared_bytes);
  if (error == cudaErrorInvalidValue) return (void)cudaGetLastError(), 0;
  check(error, "occupancy", " (" + describe(config) + ")");
  return blocks;
}

// How many clusters of this shape the device holds at once, asked once per device, kernel and shape; 0 where it has not that many
// processors side by side: clusters of more than 8 blocks are not certain on any device.
template <class... P>
int resident_clusters(const LaunchConfig& config, void (*kernel)(P...)) {
  const OnDevice on(config.device);
  const auto* function = reinterpret_cast<const void*>(kernel);
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, unsigned, unsigned, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [at, is_new] = known.try_emplace({on.index, function, config.cluster.x, config.block.x, config.shared_bytes}, 0);
  if (!is_new) return at->second;
  int clusters = 0;
  const detail::CudaConfig cuda(config);
  cudaError_t error = detail::allow(config, on.index, function);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &cuda.launch);
  if (error == cudaErrorInvalidValue || error == cudaErrorInvalidClusterSize || error == cudaErrorInvalidConfiguration)
    return (void)cudaGetLastError(), 0;
  if (error != cudaSuccess) known.erase(at);
  check(error, "clusters", " (" + describe(config) + ")");
  return at->second = clusters;
}

#else

using simt::launch;
using simt::LaunchConfig;
using simt::resident_blocks;
using simt::resident_clusters;
using simt::shared_memory_limit;  // of the architecture in the options
inline int shared_memory_limit_of_code(const void*) {
  const simt::Architecture& played = simt::architecture(simt::options().architecture);
  return std::min(int(played.shared_per_block), most_shared_memory(played.code));
}

#endif

}  // namespace xlstm::device
