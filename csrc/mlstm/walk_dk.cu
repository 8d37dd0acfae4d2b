// walk_dk.cu - the walk DK in bfloat16 and float16; equations and mapping: walk.cuh.
#include <stdexcept>

#include "mlstm/walk_launch.cuh"
#include "mlstm/walks.h"

namespace xlstm::mlstm {

void walk_dk(const WalkParams& params, int L, Stream stream) {
  if (params.element == ElementType::BFloat16)
    return launch_walk<__nv_bfloat16, WalkUse::DK>("mlstm_walk_dk<bfloat16>", params, L, stream);
  launch_walk<__half, WalkUse::DK>("mlstm_walk_dk<float16>", params, L, stream);
}

}  // namespace xlstm::mlstm
