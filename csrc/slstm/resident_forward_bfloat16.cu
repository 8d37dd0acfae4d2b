// resident_forward_bfloat16.cu - the resident forward in bfloat16; equations and mapping: resident_forward.cuh.
#include "slstm/resident.h"
#include "slstm/resident_forward.cuh"

namespace xlstm::slstm {

void resident_forward_bfloat16(const KernelForward& p, Stream stream) {
  launch_resident_forward16<__nv_bfloat16>("slstm_resident_forward<bfloat16>", p, stream);
}

}  // namespace xlstm::slstm
