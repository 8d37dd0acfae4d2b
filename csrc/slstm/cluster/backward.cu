// cluster/backward.cu - S4 with R of a head over the blocks of a cluster (sm_90+); body: split/backward.cuh, ordering:
// exchange.cuh.
#include "slstm/split/backward.cuh"

#include "slstm/cluster/launch.cuh"
#include "slstm/split/product.cuh"

namespace xlstm::slstm {

// To DH 512: 32 units per block, all of R in registers. To DH 768: 48 units, half of it in shared memory.
template <class Element>
using ClusterBackwardProducts = Products<TensorBackward<Element, 32, 8, 4, 16>, TensorBackward<Element, 48, 8, 6, 15>>;

bool cluster_fits(const KernelBackward& p, const DeviceLimits& limits) {
  return fits_cluster<ClusterBackwardProducts>("slstm_cluster_backward", p, limits);
}

void cluster_pass(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  launch_cluster<ClusterBackwardProducts>("slstm_cluster_backward", p, limits, stream);
}

}  // namespace xlstm::slstm
