// grid_plan.cuh - how a grid launch is laid out: which blocks, how many groups at once, what the workspace holds.
//
// A launch is cooperative, with at most one block per processor counted, so that all its blocks are resident and may wait for
// each other. Groups beyond that are other launches.
//   workspace: counters of all groups [group][rank * kCounterPitch], then (backward) the parts of the groups of one launch
#pragma once
#include <stdexcept>
#include <string>

#include "device/launch.cuh"
#include "slstm/grid_exchange.cuh"

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
  plan.part_bytes = int64_t(2) * plan.blocks * plan.blocks * Product::UNITS * kSplitRows * int64_t(sizeof(float));
  return plan;
}

// The first product of the list whose share of R the device's blocks hold.
template <class Product, class... Others, class Visit>
auto with_grid_product(const Shape& shape, const DeviceLimits& limits, const char* name, Visit&& visit) {
  if (shape.DH % 8 || shape.DH < 8)
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(shape.DH) + " is not a positive multiple of 8");
  if (shape.DH <= Product::MAX_DH && Product::shared_bytes(int(shape.DH)) <= limits.shared_per_block)
    return visit(static_cast<Product*>(nullptr));
  if constexpr (sizeof...(Others) > 0) {
    return with_grid_product<Others...>(shape, limits, name, visit);
  } else {
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(shape.DH) + " does not fit: up to DH " +
                                std::to_string(Product::MAX_DH) + ", with " +
                                std::to_string(Product::shared_bytes(int(shape.DH))) +
                                " bytes of shared memory; this device has " + std::to_string(limits.shared_per_block));
    return visit(static_cast<Product*>(nullptr));
  }
}

template <class Params, class Kernel>
void launch_grid(const GridPlan& plan, int threads, const char* name, Kernel kernel, const Params& params, Stream stream) {
  device::LaunchConfig config;
  config.block = dim3(unsigned(threads));
  config.shared_bytes = size_t(plan.shared_bytes);
  config.stream = stream.handle;
  config.device = stream.device;
  config.cooperative = true;
  if (device::resident_blocks(config, kernel) < 1)
    throw std::runtime_error(std::string(name) + ": a block of " + std::to_string(threads) + " threads and " +
                             std::to_string(plan.shared_bytes) +
                             " bytes of shared memory does not fit a processor of this device");
  for (int64_t first = 0; first < plan.groups; first += plan.groups_per_launch) {
    const int64_t groups = plan.groups - first < plan.groups_per_launch ? plan.groups - first : plan.groups_per_launch;
    config.grid = dim3(unsigned(groups * plan.blocks));
    device::launch(config, name, kernel, params, plan.blocks, first, plan.counter_bytes);
  }
}

void zero_grid_counters(void* counters, int64_t bytes, Stream stream);

}  // namespace xlstm::slstm
