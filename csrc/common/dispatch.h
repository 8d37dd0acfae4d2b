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

[[noreturn]] inline void throw_element(ElementType element, const char* expected) {
  throw std::invalid_argument("xlstm_cuda: element type: got " + std::to_string(int(element)) + ", expected " + expected);
}

// visit(Type<__nv_bfloat16>) or visit(Type<__half>)
template <class Visit>
auto with_16_bit_element(ElementType element, Visit&& visit) {
  switch (element) {
    case ElementType::BFloat16:
      return visit(Type<__nv_bfloat16>{});
    case ElementType::Float16:
      return visit(Type<__half>{});
    case ElementType::Float32:
      break;
  }
  throw_element(element, "1 (bfloat16) or 2 (float16)");
}

// the same, or visit(Type<float>)
template <class Visit>
auto with_element(ElementType element, Visit&& visit) {
  switch (element) {
    case ElementType::Float32:
      return visit(Type<float>{});
    case ElementType::BFloat16:
    case ElementType::Float16:
      return with_16_bit_element(element, visit);
  }
  throw_element(element, "0 (float32), 1 (bfloat16) or 2 (float16)");
}

}  // namespace xlstm
