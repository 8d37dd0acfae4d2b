// cluster/forward.cu - S1-S3 with R of a head over the blocks of a cluster (sm_90+); body: split/forward.cuh, ordering:
// exchange.cuh.
#include "slstm/split/forward.cuh"

#include "slstm/cluster/launch.cuh"
#include "slstm/split/product.cuh"

namespace xlstm::slstm {

// To DH 512: 32 units per block, all of R in registers. To DH 768: 48 units, half of it in shared memory.
template <class Element>
using ClusterForwardProducts = Products<TensorForward<Element, 32, 8, 2, 4, 16>, TensorForward<Element, 48, 12, 3, 6, 10>>;

bool cluster_fits(const KernelForward& p, const DeviceLimits& limits) {
  return fits_cluster<ClusterForwardProducts>("slstm_cluster_forward", p, limits);
}

void cluster_pass(const KernelForward& p, const DeviceLimits& limits, Stream stream) {
  launch_cluster<ClusterForwardProducts>("slstm_cluster_forward", p, limits, stream);
}

}  // namespace xlstm::slstm
