// dispatch.h - from an element type or a forget gate of run time to one of compile time. A value without a branch ends in an
// error.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "element_type.h"

namespace xlstm::slstm {

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

// visit(Type<float>), visit(Type<__nv_bfloat16>) or visit(Type<__half>)
template <class Visit>
auto with_element(ElementType element, Visit&& visit) {
  switch (element) {
    case ElementType::Float32:
      return visit(Type<float>{});
    case ElementType::BFloat16:
      return visit(Type<__nv_bfloat16>{});
    case ElementType::Float16:
      return visit(Type<__half>{});
  }
  throw std::invalid_argument("slstm: element type: got " + std::to_string(int(element)) +
                              ", expected 0 (float32), 1 (bfloat16) or 2 (float16)");
}

}  // namespace xlstm::slstm
