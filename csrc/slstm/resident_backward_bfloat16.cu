// resident_backward_bfloat16.cu - the resident backward in bfloat16; equations and mapping: resident_backward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_backward.cuh"

namespace xlstm::slstm {

void resident_backward_bfloat16(const KernelBackward& p, Stream stream) {
  launch_resident_backward16<__nv_bfloat16>("slstm_resident_backward<bfloat16>", p, stream);
}

}  // namespace xlstm::slstm
