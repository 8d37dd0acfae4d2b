// cluster/launch.cuh - the cluster kernel of either pass, and which blocks a group's cluster has; refuses what the device does
// not hold. Groups need not be resident together: a cluster waits for itself alone. A cluster of more than 8 blocks is not
// certain on any device, so it is asked.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/dispatch.h"
#include "device/launch.cuh"
#include "slstm/cluster/exchange.cuh"
#include "slstm/split/concept.h"

namespace xlstm::slstm {

constexpr int kMostClusterBlocks = 16;

// split_pass: of split/forward.cuh or split/backward.cuh.
template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    cluster_kernel([[maybe_unused]] const typename Product::Params p, [[maybe_unused]] int blocks) {
#if XLSTM_DEVICE_ARCH >= 900 && XLSTM_DEVICE_ARCH < 1200  // sm_120 has too little shared memory
  const SplitPlace place = split_place(p.shape, int(blockIdx.x) / blocks, int(device::cluster_rank()), blocks);
  auto* shared = device::dynamic_shared<unsigned char>();
  Product product(shared, p, place);
  const int DH = int(p.shape.DH);
  ClusterExchange<Product> exchange(shared + Product::shared_bytes(DH), place, DH);
  split_pass(p, place, product, exchange);
  device::cluster_sync();
#endif
}

inline bool has_clusters(const DeviceLimits& limits) {  // as the kernel's own condition
  return limits.architecture >= 90 && limits.architecture < 120;
}

template <class Product>
device::LaunchConfig cluster_config(const Shape& shape, int64_t groups) {
  const int DH = int(shape.DH), blocks = ceil_divide(DH, Product::UNITS);
  device::LaunchConfig config;
  config.grid = dim3(unsigned(groups * blocks));
  config.block = dim3(Product::THREADS);
  config.cluster = dim3(unsigned(blocks));
  config.shared_bytes = size_t(Product::shared_bytes(DH) + ClusterExchange<Product>::shared_bytes(DH));
  return config;
}

template <class Product>
bool cluster_holds(const Shape& shape, const DeviceLimits& limits) {
  if (shape.DH > Product::MAX_DH || ceil_divide(int(shape.DH), Product::UNITS) > kMostClusterBlocks) return false;
  const device::LaunchConfig config = cluster_config<Product>(shape, 1);
  return int(config.shared_bytes) <= limits.shared_per_block && device::resident_clusters(config, cluster_kernel<Product>) > 0;
}

// Visits the first product of the list whose blocks hold a head of this size and whose cluster fits the device; false: none.
template <class Product, class... Others, class Visit>
bool with_cluster_product(Products<Product, Others...>, const Shape& shape, const DeviceLimits& limits, Visit&& visit) {
  if (cluster_holds<Product>(shape, limits)) return visit(Type<Product>{}), true;
  if constexpr (sizeof...(Others) > 0)
    return with_cluster_product(Products<Others...>{}, shape, limits, visit);
  else
    return false;
}
template <template <class> class ProductsOf, class Params, class Visit>
bool with_cluster_product(const char* name, const Params& p, const DeviceLimits& limits, Visit&& visit) {
  check_head_dim(name, p.shape.DH);
  return with_element(p.element, [&](auto type) -> bool {
    using Element = typename decltype(type)::type;
    if constexpr (sizeof(Element) == 2)
      return has_clusters(limits) && with_cluster_product(ProductsOf<Element>{}, p.shape, limits, visit);
    else
      throw std::invalid_argument(std::string(name) + ": got " + kElementName<Element> +
                                  ", expected bfloat16 or float16; the grid kernel has float32");
  });
}

template <template <class> class ProductsOf, class Params>
bool fits_cluster(const char* name, const Params& p, const DeviceLimits& limits) {
  return with_cluster_product<ProductsOf>(name, p, limits, [](auto) {});
}

template <class... P>
constexpr int largest_head(Products<P...>) {
  return std::max({P::UNITS...}) * kMostClusterBlocks;
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

template <template <class> class ProductsOf, class Params>
void launch_cluster(const char* name, const Params& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  const int64_t groups = split_groups(p.shape);
  if (groups * kMostClusterBlocks > 0x7fffffff)
    throw std::invalid_argument(std::string(name) + ": B * NH is more than one launch holds");
  const bool launched = with_cluster_product<ProductsOf>(name, p, limits, [&](auto type) {
    using Product = typename decltype(type)::type;
    device::LaunchConfig config = cluster_config<Product>(p.shape, groups);
    config.stream = stream.handle;
    config.device = stream.device;
    device::launch(config, name, cluster_kernel<Product>, p, int(config.cluster.x));
  });
  if (!launched) refuse_cluster(name, p.shape, limits, largest_head(ProductsOf<__half>{}));
}

}  // namespace xlstm::slstm
