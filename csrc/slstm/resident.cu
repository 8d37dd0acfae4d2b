// resident.cu - which resident kernel runs: by element type. No kernel here.
#include "slstm/resident.h"

namespace xlstm::slstm {

void resident_forward(const KernelForward& p, void* stream) {
  switch (p.element) {
    case ElementType::Float32:
      return resident_forward_float32(p, stream);
    case ElementType::BFloat16:
      return resident_forward_bfloat16(p, stream);
    case ElementType::Float16:
      return resident_forward_float16(p, stream);
  }
}

void resident_backward(const KernelBackward& p, void* stream) {
  switch (p.element) {
    case ElementType::Float32:
      return resident_backward_float32(p, stream);
    case ElementType::BFloat16:
      return resident_backward_bfloat16(p, stream);
    case ElementType::Float16:
      return resident_backward_float16(p, stream);
  }
}

}  // namespace xlstm::slstm
