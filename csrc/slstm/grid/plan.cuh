// grid/plan.cuh - the grid kernel of either pass, and how a launch is laid out: which blocks, how many groups at once, what the
// workspace holds.
//
// A launch is cooperative, with at most one block per processor counted, so that all its blocks are resident and may wait for
// each other. Groups beyond that are other launches.
//   workspace: counters of all groups [group][rank * kCounterPitch], then (backward) the parts of the groups of one launch
#pragma once
#include <stdexcept>
#include <string>

#include "common/dispatch.h"
#include "device/launch.cuh"
#include "slstm/grid/counters.cuh"
#include "slstm/grid/exchange.cuh"
#include "slstm/split/concept.h"

namespace xlstm::slstm {

struct GridPlan {
  int blocks, shared_bytes;           // of one group; of one block
  int64_t groups, groups_per_launch;  // groups_per_launch * blocks blocks at once
  int64_t counter_bytes, part_bytes;  // part_bytes: of one group
};

template <class Product>
GridPlan grid_plan(const Shape& shape, const DeviceLimits& limits, const char* name) {
  GridPlan plan{};
  const int DH = int(shape.DH);
  plan.blocks = ceil_divide(DH, Product::UNITS);
  plan.shared_bytes = Product::shared_bytes(DH);
  plan.groups = split_groups(shape);
  if (plan.blocks > limits.processors)
    throw std::runtime_error(std::string(name) + ": the blocks of one head wait for each other and must all be resident; " +
                             "DH " + std::to_string(DH) + " needs " + std::to_string(plan.blocks) +
                             " of them, this device fits " + std::to_string(limits.processors));
  const int64_t most = limits.processors / plan.blocks;
  plan.groups_per_launch = most < plan.groups ? most : plan.groups;
  plan.counter_bytes = plan.groups * plan.blocks * kCounterPitch * int64_t(sizeof(uint32_t));
  plan.part_bytes = int64_t(2) * plan.blocks * plan.blocks * GridExchange<Product>::kPartFloats * int64_t(sizeof(float));
  return plan;
}

// split_pass: of split/forward.cuh or split/backward.cuh.
template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    grid_kernel(const typename Product::Params p, int blocks, int64_t first_group, int64_t counter_bytes) {
  const int local = int(blockIdx.x) / blocks;
  const SplitPlace place = split_place(p.shape, first_group + local, int(blockIdx.x) % blocks, blocks);
  Product product(device::dynamic_shared<unsigned char>(), p, place);
  auto* counters = static_cast<uint32_t*>(p.workspace) + (first_group + local) * blocks * kCounterPitch;
  auto* parts = reinterpret_cast<float*>(static_cast<unsigned char*>(p.workspace) + counter_bytes) +
                int64_t(2) * local * blocks * blocks * GridExchange<Product>::kPartFloats;
  GridExchange<Product> exchange(p, place, counters, parts);
  split_pass(p, place, product, exchange);
}

// Visits the first product of the list whose share of R the device's blocks hold.
template <class Product, class... Others, class Visit>
auto with_grid_product(Products<Product, Others...>, const char* name, const Shape& shape, const DeviceLimits& limits,
                       Visit&& visit) {
  const int bytes = Product::shared_bytes(int(shape.DH));
  if (shape.DH <= Product::MAX_DH && bytes <= limits.shared_per_block) return visit(Type<Product>{});
  if constexpr (sizeof...(Others) > 0)
    return with_grid_product(Products<Others...>{}, name, shape, limits, visit);
  else
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(shape.DH) + " does not fit: up to DH " +
                                std::to_string(Product::MAX_DH) + ", with " + std::to_string(bytes) +
                                " bytes of shared memory; this device has " + std::to_string(limits.shared_per_block));
}
template <template <class> class ProductsOf, class Params, class Visit>
auto with_grid_product(const char* name, const Params& p, const DeviceLimits& limits, Visit&& visit) {
  check_head_dim(name, p.shape.DH);
  return with_element(p.element, [&](auto type) {
    return with_grid_product(ProductsOf<typename decltype(type)::type>{}, name, p.shape, limits, visit);
  });
}

// Of the workspace.
template <template <class> class ProductsOf, class Params>
int64_t grid_bytes(const char* name, const Params& p, const DeviceLimits& limits) {
  return with_grid_product<ProductsOf>(name, p, limits, [&](auto type) {
    const GridPlan plan = grid_plan<typename decltype(type)::type>(p.shape, limits, name);
    return plan.counter_bytes + plan.groups_per_launch * plan.part_bytes;
  });
}

template <class Product, class Params>
void launch_groups(const GridPlan& plan, const char* name, const Params& p, Stream stream) {
  device::LaunchConfig config;
  config.block = dim3(Product::THREADS);
  config.shared_bytes = size_t(plan.shared_bytes);
  config.stream = stream.handle;
  config.device = stream.device;
  config.cooperative = true;
  if (device::resident_blocks(config, grid_kernel<Product>) < 1)
    throw std::runtime_error(std::string(name) + ": a block of " + std::to_string(Product::THREADS) + " threads and " +
                             std::to_string(plan.shared_bytes) +
                             " bytes of shared memory does not fit a processor of this device");
  for (int64_t first = 0; first < plan.groups; first += plan.groups_per_launch) {
    const int64_t groups = plan.groups - first < plan.groups_per_launch ? plan.groups - first : plan.groups_per_launch;
    config.grid = dim3(unsigned(groups * plan.blocks));
    device::launch(config, name, grid_kernel<Product>, p, plan.blocks, first, plan.counter_bytes);
  }
}

template <template <class> class ProductsOf, class Params>
void launch_grid(const char* name, const Params& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  with_grid_product<ProductsOf>(name, p, limits, [&](auto type) {
    using Product = typename decltype(type)::type;
    const GridPlan plan = grid_plan<Product>(p.shape, limits, name);
    zero_grid_counters(p.workspace, plan.counter_bytes, stream);
    launch_groups<Product>(plan, name, p, stream);
  });
}

}  // namespace xlstm::slstm
