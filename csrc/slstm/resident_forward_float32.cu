// resident_forward_float32.cu - the resident forward in float32, R in shared memory; equations and mapping: resident_forward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_forward.cuh"

namespace xlstm::slstm {

static_assert(sizeof(ForwardTile<float, 64, 1, 3>::Shared) <= 99 * 1024, "choice.cpp gives head dim 64 to every GPU");
static_assert(sizeof(ForwardTile<float, 96, 1, 3>::Shared) <= 200 * 1024, "choice.cpp gives head dim 96 to GPUs with 200 KiB");

void resident_forward_float32(const KernelForward& p, Stream stream) {
  constexpr char name[] = "slstm_resident_forward<float32>";
  if (p.shape.DH <= 32) return launch_resident_forward<ForwardTile<float, 32, 1, 4>>(name, p, stream);
  if (p.shape.DH <= 64) return launch_resident_forward<ForwardTile<float, 64, 1, 3>>(name, p, stream);
  launch_resident_forward<ForwardTile<float, 96, 1, 3>>(name, p, stream);
}

}  // namespace xlstm::slstm
