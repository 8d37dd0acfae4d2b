// resident_backward_float32.cu - the resident backward in float32, R in shared memory; equations and mapping:
// resident_backward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_backward.cuh"

namespace xlstm::slstm {

void resident_backward_float32(const KernelBackward& p, void* stream) {
  constexpr char name[] = "slstm_resident_backward<float32>";
  if (p.shape.DH <= 32) return launch_resident_backward<BackwardTile<float, 32, 3>>(name, p, stream);
  if (p.shape.DH <= 64) return launch_resident_backward<BackwardTile<float, 64, 1>>(name, p, stream);
  launch_resident_backward<BackwardTile<float, 96, 1>>(name, p, stream);
}

}  // namespace xlstm::slstm
