// resident.h - the resident kernels by element type, one translation unit each; resident.cu chooses.
#pragma once
#include "slstm/kernels.h"

namespace xlstm::slstm {

void resident_forward_bfloat16(const KernelForward&, Stream stream);
void resident_forward_float16(const KernelForward&, Stream stream);
void resident_forward_float32(const KernelForward&, Stream stream);
void resident_backward_bfloat16(const KernelBackward&, Stream stream);
void resident_backward_float16(const KernelBackward&, Stream stream);
void resident_backward_float32(const KernelBackward&, Stream stream);

}  // namespace xlstm::slstm
