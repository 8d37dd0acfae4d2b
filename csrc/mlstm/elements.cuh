// elements.cuh - single values of tensors whose element type is a run-time field (gates, their gradients).
#pragma once
#include "device/convert.cuh"
#include "mlstm/params.h"

namespace xlstm::mlstm {

// Launchers refuse what is no element type (require_element): an error here would keep the loops of the gate kernels from being
// unrolled, and so would two ifs instead of the switch.
XLSTM_DEVICE float load_element(const void* tensor, ElementType element, int64_t at) {
  switch (element) {
    case ElementType::BFloat16:
      return device::to_float(static_cast<const __nv_bfloat16*>(tensor)[at]);
    case ElementType::Float16:
      return device::to_float(static_cast<const __half*>(tensor)[at]);
    case ElementType::Float32:
      break;
  }
  return static_cast<const float*>(tensor)[at];
}

XLSTM_DEVICE void store_element(void* tensor, ElementType element, int64_t at, float value) {
  switch (element) {
    case ElementType::BFloat16:
      static_cast<__nv_bfloat16*>(tensor)[at] = device::from_float<__nv_bfloat16>(value);
      return;
    case ElementType::Float16:
      static_cast<__half*>(tensor)[at] = device::from_float<__half>(value);
      return;
    case ElementType::Float32:
      break;
  }
  static_cast<float*>(tensor)[at] = value;
}

}  // namespace xlstm::mlstm
