// walk_h.cu - the walk H in bfloat16 and float16; equations and mapping: walk.cuh.
#include <stdexcept>

#include "mlstm/walk_launch.cuh"
#include "mlstm/walks.h"

namespace xlstm::mlstm {

void walk_h(const WalkParams& params, int L, Stream stream) {
  if (params.element == ElementType::BFloat16)
    return launch_walk<__nv_bfloat16, WalkUse::H>("mlstm_walk_h<bfloat16>", params, L, stream);
  launch_walk<__half, WalkUse::H>("mlstm_walk_h<float16>", params, L, stream);
}

}  // namespace xlstm::mlstm
