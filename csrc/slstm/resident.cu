// resident.cu - which resident kernel runs: by element type. No kernel here.
#include "slstm/resident.h"

#include <stdexcept>
#include <string>

namespace xlstm::slstm {
namespace {

void check_head_dim(int64_t DH, ElementType element) {
  const int64_t most = element == ElementType::Float32 ? 96 : 128;
  if (DH < 8 || DH % 8 || DH > most)
    throw std::invalid_argument("slstm resident kernel: DH: got " + std::to_string(DH) + ", expected a multiple of 8 up to " +
                                std::to_string(most));
}

}  // namespace

void resident_forward(const KernelForward& p, Stream stream) {
  check_head_dim(p.shape.DH, p.element);
  switch (p.element) {
    case ElementType::Float32:
      return resident_forward_float32(p, stream);
    case ElementType::BFloat16:
      return resident_forward_bfloat16(p, stream);
    case ElementType::Float16:
      return resident_forward_float16(p, stream);
  }
}

void resident_backward(const KernelBackward& p, Stream stream) {
  check_head_dim(p.shape.DH, p.element);
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
