// grid_forward.cu - S1-S3 with R of a head over the blocks of a cooperative grid (sm_80+); body: split_forward.cuh, ordering:
// grid_exchange.cuh.
#include "slstm/grid_plan.cuh"
#include "slstm/split_forward.cuh"
#include "slstm/split_product.cuh"
#include "slstm/split_product_float32.cuh"

namespace xlstm::slstm {
namespace {

// 32 units per block, half of R at DH 1024 in registers; 16 units, all of it, for processors with little shared memory.
template <class Element>
using Wide = TensorForward<Element, 32, 8, 1, 4, 16>;
template <class Element>
using Narrow = TensorForward<Element, 16, 8, 1, 4, 16>;

template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    grid_forward_kernel(const KernelForward p, int blocks, int64_t first_group, int64_t) {
  const int local = int(blockIdx.x) / blocks;
  const SplitPlace place = split_place(p.shape, first_group + local, int(blockIdx.x) % blocks, blocks);
  Product product(device::dynamic_shared<unsigned char>(), p, place);
  auto* counters = static_cast<uint32_t*>(p.workspace) + (first_group + local) * blocks * kCounterPitch;
  GridForwardExchange<Product> exchange{p, place, counters};
  split_forward(p, place, product, exchange);
}

template <class Visit>
auto with_product(const KernelForward& p, const DeviceLimits& limits, Visit&& visit) {
  constexpr const char* name = "slstm_grid_forward";
  switch (p.element) {
    case ElementType::BFloat16:
      return with_grid_product<Wide<__nv_bfloat16>, Narrow<__nv_bfloat16>>(p.shape, limits, name, visit);
    case ElementType::Float16:
      return with_grid_product<Wide<__half>, Narrow<__half>>(p.shape, limits, name, visit);
    default:
      return with_grid_product<FmaForward<8, 3>>(p.shape, limits, name, visit);
  }
}

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

int64_t grid_workspace_bytes(const KernelForward& p, const DeviceLimits& limits) {
  return with_product(p, limits, [&](auto* product) {
    using Product = std::remove_pointer_t<decltype(product)>;
    return grid_plan<Product>(p.shape, limits, "slstm_grid_forward").counter_bytes;
  });
}

void grid_forward(const KernelForward& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  with_product(p, limits, [&](auto* product) {
    using Product = std::remove_pointer_t<decltype(product)>;
    const GridPlan plan = grid_plan<Product>(p.shape, limits, "slstm_grid_forward");
    zero_grid_counters(p.workspace, plan.counter_bytes, stream);
    launch_grid(plan, Product::THREADS, "slstm_grid_forward", grid_forward_kernel<Product>, p, stream);
  });
}

}  // namespace xlstm::slstm
