// grid_backward.cu - S4 with R of a head over the blocks of a cooperative grid (sm_80+); body: split_backward.cuh, ordering:
// grid_exchange.cuh.
#include "slstm/grid_plan.cuh"
#include "slstm/split_backward.cuh"
#include "slstm/split_product.cuh"
#include "slstm/split_product_float32.cuh"

namespace xlstm::slstm {
namespace {

template <class Element>
using Wide = TensorBackward<Element, 32, 8, 8, 16>;
template <class Element>
using Narrow = TensorBackward<Element, 16, 8, 8, 16>;

template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    grid_backward_kernel(const KernelBackward p, int blocks, int64_t first_group, int64_t counter_bytes) {
  const int local = int(blockIdx.x) / blocks;
  const SplitPlace place = split_place(p.shape, first_group + local, int(blockIdx.x) % blocks, blocks);
  Product product(device::dynamic_shared<unsigned char>(), p, place);
  auto* counters = static_cast<uint32_t*>(p.workspace) + (first_group + local) * blocks * kCounterPitch;
  auto* parts = reinterpret_cast<float*>(static_cast<unsigned char*>(p.workspace) + counter_bytes) +
                int64_t(2) * local * blocks * blocks * Product::UNITS * kSplitRows;
  GridBackwardExchange<Product> exchange(place, counters, parts, int(p.shape.DH));
  split_backward(p, place, product, exchange);
}

template <class Visit>
auto with_product(const KernelBackward& p, const DeviceLimits& limits, Visit&& visit) {
  constexpr const char* name = "slstm_grid_backward";
  switch (p.element) {
    case ElementType::BFloat16:
      return with_grid_product<Wide<__nv_bfloat16>, Narrow<__nv_bfloat16>>(p.shape, limits, name, visit);
    case ElementType::Float16:
      return with_grid_product<Wide<__half>, Narrow<__half>>(p.shape, limits, name, visit);
    default:
      return with_grid_product<FmaBackward<4, 1>>(p.shape, limits, name, visit);
  }
}

}  // namespace

int64_t grid_workspace_bytes(const KernelBackward& p, const DeviceLimits& limits) {
  return with_product(p, limits, [&](auto* product) {
    using Product = std::remove_pointer_t<decltype(product)>;
    const GridPlan plan = grid_plan<Product>(p.shape, limits, "slstm_grid_backward");
    return plan.counter_bytes + plan.groups_per_launch * plan.part_bytes;
  });
}

void grid_backward(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  with_product(p, limits, [&](auto* product) {
    using Product = std::remove_pointer_t<decltype(product)>;
    const GridPlan plan = grid_plan<Product>(p.shape, limits, "slstm_grid_backward");
    zero_grid_counters(p.workspace, plan.counter_bytes, stream);
    launch_grid(plan, Product::THREADS, "slstm_grid_backward", grid_backward_kernel<Product>, p, stream);
  });
}

}  // namespace xlstm::slstm
