// resident_forward_float16.cu - the resident forward in float16; equations and mapping: resident_forward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_forward.cuh"

namespace xlstm::slstm {

void resident_forward_float16(const KernelForward& p, Stream stream) {
  launch_resident_forward16<__half>("slstm_resident_forward<float16>", p, stream);
}

}  // namespace xlstm::slstm
