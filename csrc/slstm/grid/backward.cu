// grid/backward.cu - S4 with R of a head over the blocks of a cooperative grid (sm_80+); body: split/backward.cuh, ordering:
// exchange.cuh.
#include "slstm/split/backward.cuh"

#include "slstm/grid/plan.cuh"
#include "slstm/split/product.cuh"
#include "slstm/split/product_float32.cuh"

namespace xlstm::slstm {

// As in forward: 32 units per block, or 16.
template <class Element>
using GridBackwardProducts =
    std::conditional_t<sizeof(Element) == 4, Products<FmaBackward<4, 1>>,
                       Products<TensorBackward<Element, 32, 8, 8, 16>, TensorBackward<Element, 16, 8, 8, 16>>>;

int64_t grid_workspace_bytes(const KernelBackward& p, const DeviceLimits& limits) {
  return grid_bytes<GridBackwardProducts>("slstm_grid_backward", p, limits);
}

void grid_pass(const KernelBackward& p, const DeviceLimits& limits, Stream stream) {
  launch_grid<GridBackwardProducts>("slstm_grid_backward", p, limits, stream);
}

}  // namespace xlstm::slstm
