// grid/forward.cu - S1-S3 with R of a head over the blocks of a cooperative grid (sm_80+); body: split/forward.cuh, ordering:
// exchange.cuh.
#include "slstm/split/forward.cuh"

#include "slstm/grid/plan.cuh"
#include "slstm/split/product.cuh"
#include "slstm/split/product_float32.cuh"

namespace xlstm::slstm {

// 32 units per block, half of R at DH 1024 in registers; 16 units, all of it, for processors with little shared memory.
template <class Element>
using GridForwardProducts =
    std::conditional_t<sizeof(Element) == 4, Products<FmaForward<8, 3>>,
                       Products<TensorForward<Element, 32, 8, 1, 4, 16>, TensorForward<Element, 16, 8, 1, 4, 16>>>;

int64_t grid_workspace_bytes(const KernelForward& p, const DeviceLimits& limits) {
  return grid_bytes<GridForwardProducts>("slstm_grid_forward", p, limits);
}

void grid_pass(const KernelForward& p, const DeviceLimits& limits, Stream stream) {
  launch_grid<GridForwardProducts>("slstm_grid_forward", p, limits, stream);
}

}  // namespace xlstm::slstm
