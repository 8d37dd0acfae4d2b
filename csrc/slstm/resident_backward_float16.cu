// resident_backward_float16.cu - the resident backward in float16; equations and mapping: resident_backward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_backward.cuh"

namespace xlstm::slstm {

void resident_backward_float16(const KernelBackward& p, Stream stream) {
  launch_resident_backward16<__half>("slstm_resident_backward<float16>", p, stream);
}

}  // namespace xlstm::slstm
