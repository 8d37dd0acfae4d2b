// cluster_launch.cuh - which blocks a group's cluster has; refuses what the device does not hold. Groups need not be resident
// together: a cluster waits for itself alone.
#pragma once
#include <stdexcept>
#include <string>

#include "device/launch.cuh"
#include "slstm/cluster_exchange.cuh"

namespace xlstm::slstm {

constexpr int kMostClusterBlocks = 16;

// The first product of the list whose blocks, at most 16, hold a head of this size.
template <template <class> class Exchange, class Product, class... Others, class Visit>
void with_cluster_product(const Shape& shape, const DeviceLimits& limits, const char* name, Visit&& visit) {
  if (limits.architecture < 90 || limits.architecture >= 120)  // as the kernels' own condition
    throw std::invalid_argument(std::string(name) + ": clusters need sm_90 or sm_100, this device is sm_" +
                                std::to_string(limits.architecture));
  if (shape.DH % 8 || shape.DH < 8)
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(shape.DH) + " is not a positive multiple of 8");
  const int DH = int(shape.DH), bytes = Product::shared_bytes(DH) + Exchange<Product>::shared_bytes(DH);
  if (DH <= Product::MAX_DH && ceil_divide(DH, Product::UNITS) <= kMostClusterBlocks && bytes <= limits.shared_per_block)
    return visit(static_cast<Product*>(nullptr), bytes);
  if constexpr (sizeof...(Others) > 0)
    with_cluster_product<Exchange, Others...>(shape, limits, name, visit);
  else
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(DH) + " does not fit: up to DH " +
                                std::to_string(Product::UNITS * kMostClusterBlocks) + ", with " + std::to_string(bytes) +
                                " bytes of shared memory; this device has " + std::to_string(limits.shared_per_block));
}

template <class Product, class Params, class Kernel>
void launch_cluster(const char* name, Kernel kernel, const Params& p, int shared_bytes, Stream stream) {
  const int blocks = ceil_divide(int(p.shape.DH), Product::UNITS);
  const int64_t groups = split_groups(p.shape);
  if (groups * blocks > 0x7fffffff) throw std::invalid_argument(std::string(name) + ": B * NH is more than one launch holds");
  device::LaunchConfig config;
  config.grid = dim3(unsigned(groups * blocks));
  config.block = dim3(Product::THREADS);
  config.cluster = dim3(unsigned(blocks));
  config.shared_bytes = size_t(shared_bytes);
  config.stream = stream.handle;
  config.device = stream.device;
  device::launch(config, name, kernel, p, blocks);
}

}  // namespace xlstm::slstm
