// cluster_launch.cuh - which blocks a group's cluster has; refuses what the device does not hold. Groups need not be resident
// together: a cluster waits for itself alone. A cluster of more than 8 blocks is not certain on any device, so it is asked.
#pragma once
#include <stdexcept>
#include <string>

#include "device/launch.cuh"
#include "slstm/cluster_exchange.cuh"

namespace xlstm::slstm {

constexpr int kMostClusterBlocks = 16;

template <class Product>
device::LaunchConfig cluster_config(const Shape& shape, int64_t groups, int shared_bytes) {
  const int blocks = ceil_divide(int(shape.DH), Product::UNITS);
  device::LaunchConfig config;
  config.grid = dim3(unsigned(groups * blocks));
  config.block = dim3(Product::THREADS);
  config.cluster = dim3(unsigned(blocks));
  config.shared_bytes = size_t(shared_bytes);
  return config;
}

// Visits the first product of the list whose blocks hold a head of this size and whose cluster fits the device; false: none.
template <template <class> class Exchange, class Product, class... Others, class KernelOf, class Visit>
bool with_cluster_product(const Shape& shape, const DeviceLimits& limits, KernelOf&& kernel_of, Visit&& visit) {
  const int DH = int(shape.DH);
  if (DH <= Product::MAX_DH && ceil_divide(DH, Product::UNITS) <= kMostClusterBlocks) {
    auto* product = static_cast<Product*>(nullptr);
    const int bytes = Product::shared_bytes(DH) + Exchange<Product>::shared_bytes(DH);
    if (bytes <= limits.shared_per_block &&
        device::resident_clusters(cluster_config<Product>(shape, 1, bytes), kernel_of(product)) > 0) {
      visit(product, bytes);
      return true;
    }
  }
  if constexpr (sizeof...(Others) > 0)
    return with_cluster_product<Exchange, Others...>(shape, limits, kernel_of, visit);
  else
    return false;
}

inline bool has_clusters(const DeviceLimits& limits) {  // as the kernels' own condition
  return limits.architecture >= 90 && limits.architecture < 120;
}

template <class Product, class Params, class Kernel>
void launch_cluster(const char* name, Kernel kernel, const Params& p, int shared_bytes, Stream stream) {
  const int64_t groups = split_groups(p.shape);
  if (groups * kMostClusterBlocks > 0x7fffffff)
    throw std::invalid_argument(std::string(name) + ": B * NH is more than one launch holds");
  device::LaunchConfig config = cluster_config<Product>(p.shape, groups, shared_bytes);
  config.stream = stream.handle;
  config.device = stream.device;
  device::launch(config, name, kernel, p, int(config.cluster.x));
}

[[noreturn]] inline void refuse_cluster(const char* name, const Shape& shape, const DeviceLimits& limits, int most_DH) {
  const std::string begin = std::string(name) + ": ", DH = "DH " + std::to_string(shape.DH);
  if (!has_clusters(limits))
    throw std::invalid_argument(begin + "clusters need sm_90 or sm_100, this device is sm_" +
                                std::to_string(limits.architecture));
  throw std::invalid_argument(begin + DH + " does not fit: up to DH " + std::to_string(most_DH) + " where a cluster may have " +
                              std::to_string(kMostClusterBlocks) + " blocks; this device has " +
                              std::to_string(limits.shared_per_block) +
                              " bytes of shared memory, and holds no cluster of that size");
}

}  // namespace xlstm::slstm
