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

template <class Element>
void launch(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  constexpr const char* name = "slstm_cluster_backward";
  with_cluster_product<ClusterBackwardExchange, Small<Element>, Large<Element>>(
      p.shape, limits, name, [&](auto* product, int shared_bytes) {
        using Product = std::remove_pointer_t<decltype(product)>;
        launch_cluster<Product>(name, cluster_backward_kernel<Product>, p, shared_bytes, stream);
      });
}

}  // namespace

void cluster_backward(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  switch (p.element) {
    case ElementType::BFloat16:
      return launch<__nv_bfloat16>(p, limits, stream);
    case ElementType::Float16:
      return launch<__half>(p, limits, stream);
    case ElementType::Float32:
      throw std::invalid_argument(
          "slstm_cluster_backward: got float32, expected bfloat16 or float16; the grid kernel has float32");
  }
}

}  // namespace xlstm::slstm
