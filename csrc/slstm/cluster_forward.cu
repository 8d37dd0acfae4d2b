// cluster_forward.cu - S1-S3 with R of a head over the blocks of a cluster (sm_90+); body: split_forward.cuh, ordering:
// cluster_exchange.cuh.
#include "slstm/cluster_launch.cuh"
#include "slstm/split_forward.cuh"
#include "slstm/split_product.cuh"

namespace xlstm::slstm {
namespace {

// To DH 512: 32 units per block, all of R in registers. To DH 768: 48 units, half of it in shared memory.
template <class Element>
using Small = TensorForward<Element, 32, 8, 2, 4, 16>;
template <class Element>
using Large = TensorForward<Element, 48, 12, 3, 6, 10>;

template <class Product>
__global__ void __launch_bounds__(Product::THREADS, 1)
    cluster_forward_kernel([[maybe_unused]] const KernelForward p, [[maybe_unused]] int blocks) {
#if XLSTM_DEVICE_ARCH >= 900 && XLSTM_DEVICE_ARCH < 1200  // sm_120 has too little shared memory
  const SplitPlace place = split_place(p.shape, int(blockIdx.x) / blocks, int(device::cluster_rank()), blocks);
  auto* shared = device::dynamic_shared<unsigned char>();
  Product product(shared, p, place);
  const int DH = int(p.shape.DH);
  ClusterForwardExchange<Product> exchange(shared + Product::shared_bytes(DH), place, DH);
  split_forward(p, place, product, exchange);
  device::cluster_sync();
#endif
}

template <class Element>
void launch(const KernelForward& p, const DeviceLimits& limits, Stream stream) {
  constexpr const char* name = "slstm_cluster_forward";
  with_cluster_product<ClusterForwardExchange, Small<Element>, Large<Element>>(
      p.shape, limits, name, [&](auto* product, int shared_bytes) {
        using Product = std::remove_pointer_t<decltype(product)>;
        launch_cluster<Product>(name, cluster_forward_kernel<Product>, p, shared_bytes, stream);
      });
}

}  // namespace

void cluster_forward(const KernelForward& p, const DeviceLimits& limits, Stream stream) {
  if (p.shape.B == 0 || p.shape.NH == 0) return;
  switch (p.element) {
    case ElementType::BFloat16:
      return launch<__nv_bfloat16>(p, limits, stream);
    case ElementType::Float16:
      return launch<__half>(p, limits, stream);
    case ElementType::Float32:
      throw std::invalid_argument(
          "slstm_cluster_forward: got float32, expected bfloat16 or float16; the grid kernel has float32");
  }
}

}  // namespace xlstm::slstm
