// resident_backward_float32.cu - the resident backward in float32, R in shared memory; equations and mapping:
// resident_backward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_backward.cuh"

namespace xlstm::slstm {

static_assert(sizeof(BackwardTile<float, 64, 1>::Shared) <= 99 * 1024, "choice.cpp gives head dim 64 to every GPU");
static_assert(sizeof(BackwardTile<float, 96, 1>::Shared) <= 200 * 1024, "choice.cpp gives head dim 96 to GPUs with 200 KiB");

void resident_backward_float32(const KernelBackward& p, Stream stream) {
  constexpr char name[] = "slstm_resident_backward<float32>";
  if (p.shape.DH <= 32) return launch_resident_backward<BackwardTile<float, 32, 3>>(name, p, stream);
  if (p.shape.DH <= 64) return launch_resident_backward<BackwardTile<float, 64, 1>>(name, p, stream);
  launch_resident_backward<BackwardTile<float, 96, 1>>(name, p, stream);
}

}  // namespace xlstm::slstm
