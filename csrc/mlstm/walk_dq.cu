// walk_dq.cu - the walk DQ in bfloat16 and float16; equations and mapping: walk.cuh.
#include <stdexcept>

#include "mlstm/walk_launch.cuh"
#include "mlstm/walks.h"

namespace xlstm::mlstm {

void walk_dq(const WalkParams& params, int L, Stream stream) {
  if (params.element == ElementType::BFloat16)
    return launch_walk<__nv_bfloat16, WalkUse::DQ>("mlstm_walk_dq<bfloat16>", params, L, stream);
  launch_walk<__half, WalkUse::DQ>("mlstm_walk_dq<float16>", params, L, stream);
}

}  // namespace xlstm::mlstm
