// dispatch.h - from a value of run time to a type of compile time, for launchers. A value without a kernel ends in an error.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "common/element_type.h"

namespace xlstm {

template <class Element>
struct Type {
  using type = Element;
};

template <class Element>
constexpr const char* kElementName = nullptr;
template <>
inline constexpr const char* kElementName<float> = "float32";
template <>
inline constexpr const char* kElementName<__nv_bfloat16> = "bfloat16";
template <>
inline constexpr const char* kElementName<__half> = "float16";

// visit(Type<__nv_bfloat16>) or visit(Type<__half>)
template <class Visit>
auto with_16_bit_element(ElementType element, Visit&& visit) {
  if (element == ElementType::BFloat16) return visit(Type<__nv_bfloat16>{});
  if (element == ElementType::Float16) return visit(Type<__half>{});
  throw std::invalid_argument("xlstm_cuda: element type: got " + std::to_string(int(element)) +
                              ", expected 1 (bfloat16) or 2 (float16), or for some kernels 0 (float32)");
}

// the same, or visit(Type<float>)
template <class Visit>
auto with_element(ElementType element, Visit&& visit) {
  return element == ElementType::Float32 ? visit(Type<float>{}) : with_16_bit_element(element, visit);
}

// For launchers whose kernels choose by the value themselves.
inline void require_element(ElementType element) {
  with_element(element, [](auto) {});
}

}  // namespace xlstm
