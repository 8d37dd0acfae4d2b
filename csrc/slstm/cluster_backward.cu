// cluster_backward.cu - S4 with R of a head over the blocks of a cluster (sm_90+); body: split_backward.cuh, ordering:
// cluster_exchange.cuh.
#include "slstm/cluster_launch.cuh"
#include "slstm/split_backward.cuh"
#include "slstm/split_product.cuh"

namespace xlstm::slstm {
namespace {

// To DH 512: 32 units per block, all of R in registers. To DH 768: 48 units, half of it in shared memory.
template <class Element>
using Small = TensorBackward<Element, 32, 8, 4, 16>;
template <class Element>
using Large = TensorBackward<Element, 48, 8, 6, 15>;

template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    cluster_backward_kernel([[maybe_unused]] const KernelBackward p, [[maybe_unused]] int blocks) {
#if XLSTM_DEVICE_ARCH >= 900 && XLSTM_DEVICE_ARCH < 1200  // sm_120 has too little shared memory
  const SplitPlace place = split_place(p.shape, int(blockIdx.x) / blocks, int(device::cluster_rank()), blocks);
  auto* shared = device::dynamic_shared<unsigned char>();
  Product product(shared, p, place);
  const int DH = int(p.shape.DH);
  ClusterBackwardExchange<Product> exchange(shared + Product::shared_bytes(DH), place, DH);
  split_backward(p, place, product, exchange);
  device::cluster_sync();
#endif
}

template <class Element, class Visit>
bool with_product(const Shape& shape, const DeviceLimits& limits, Visit&& visit) {
  const auto kernel_of = [](auto* product) { return cluster_backward_kernel<std::remove_pointer_t<decltype(product)>>; };
  return has_clusters(limits) &&
         with_cluster_product<ClusterBackwardExchange, Small<Element>, Large<Element>>(shape, limits, kernel_of, visit);
}

template <class Visit>
bool with_product(const KernelBackward& p, const DeviceLimits& limits, Visit&& visit) {
  constexpr const char* name = "slstm_cluster_backward";
  if (p.shape.DH % 8 || p.shape.DH < 8)
    throw std::invalid_argument(std::string(name) + ": DH " + std::to_string(p.shape.DH) + " is not a positive multiple of 8");
  switch (p.element) {
    case ElementType::BFloat16:
      return with_product<__nv_bfloat16>(p.shape, limits, visit);
    case ElementType::Float16:
      return with_product<__half>(p.shape, limits, visit);
    default:
      throw std::invalid_argument(std::string(name) + ": got float32, expected bfloat16 or float16; the grid kernel has float32");
  }
}

}  // namespace

bool cluster_fits(const KernelBackward& p, const DeviceLimits& limits) {
  return with_product(p, limits, [](auto*, int) {});
}

void cluster_backward(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  constexpr const char* name = "slstm_cluster_backward";
  const bool launched = with_product(p, limits, [&](auto* product, int shared_bytes) {
    using Product = std::remove_pointer_t<decltype(product)>;
    launch_cluster<Product>(name, cluster_backward_kernel<Product>, p, shared_bytes, stream);
  });
  if (!launched) refuse_cluster(name, p.shape, limits, Large<__half>::UNITS * kMostClusterBlocks);
}

}  // namespace xlstm::slstm
