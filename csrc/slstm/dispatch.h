// dispatch.h - from an element type or a forget gate of run time to one of compile time. A value without a branch ends in an
// error.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "device/language.cuh"
#include "element_type.h"
#include "slstm/params.h"

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

template <ForgetGate gate>
using ForgetGateConstant = std::integral_constant<ForgetGate, gate>;

// Every launcher asks this first, so that kernels need not.
inline void check_forget_gate(ForgetGate gate) {
  switch (gate) {
    case ForgetGate::kSigmoid:
    case ForgetGate::kExp:
      return;
  }
  throw std::invalid_argument("slstm: forget gate: got " + std::to_string(int(gate)) + ", expected 0 (sigmoid) or 1 (exp)");
}

// visit(ForgetGateConstant<gate>), inside a kernel. A gate that check_forget_gate refuses does not get here.
template <class Visit>
XLSTM_DEVICE auto with_forget_gate(ForgetGate gate, Visit&& visit) {
  switch (gate) {
    case ForgetGate::kSigmoid:
      return visit(ForgetGateConstant<ForgetGate::kSigmoid>{});
    case ForgetGate::kExp:
      return visit(ForgetGateConstant<ForgetGate::kExp>{});
  }
  __builtin_unreachable();
}

}  // namespace xlstm::slstm
