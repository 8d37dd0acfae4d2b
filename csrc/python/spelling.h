// spelling.h - how Python spells the values of the enums.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "cpu/mlstm.h"
#include "mlstm/params.h"
#include "slstm/kernels.h"

namespace xlstm::python {

template <class E>
using Spellings = std::pair<const char*, E>[];

template <class E>
constexpr std::nullptr_t kSpellings = nullptr;
template <>
inline constexpr Spellings<ElementType> kSpellings<ElementType> = {
    {"float32", ElementType::Float32}, {"bfloat16", ElementType::BFloat16}, {"float16", ElementType::Float16}};
template <>
inline constexpr Spellings<InputGate> kSpellings<InputGate> = {{"exp", InputGate::Exponential}, {"sigmoid", InputGate::Sigmoid}};
template <>
inline constexpr Spellings<cpu::Storage> kSpellings<cpu::Storage> = {
    {"real", cpu::Storage::kReal}, {"bfloat16", cpu::Storage::kBFloat16}, {"float16", cpu::Storage::kFloat16}};
template <>
inline constexpr Spellings<mlstm::WalkUse> kSpellings<mlstm::WalkUse> = {
    {"h", mlstm::WalkUse::H}, {"dq", mlstm::WalkUse::DQ}, {"dk", mlstm::WalkUse::DK}, {"dv", mlstm::WalkUse::DV}};
template <>
inline constexpr Spellings<slstm::ForgetGate> kSpellings<slstm::ForgetGate> = {{"sigmoid", slstm::ForgetGate::kSigmoid},
                                                                               {"exp", slstm::ForgetGate::kExp}};
template <>
inline constexpr Spellings<slstm::KernelKind> kSpellings<slstm::KernelKind> = {{"resident", slstm::KernelKind::Resident},
                                                                               {"cluster", slstm::KernelKind::Cluster},
                                                                               {"grid", slstm::KernelKind::Grid},
                                                                               {"step", slstm::KernelKind::Step}};

template <class E>
const E* meaning(pybind11::handle spelling) {
  if (!PyUnicode_Check(spelling.ptr())) return nullptr;
  for (const auto& [name, value] : kSpellings<E>)
    if (PyUnicode_CompareWithASCIIString(spelling.ptr(), name) == 0) return &value;
  return nullptr;
}

// ValueError with what is accepted, for anything else.
template <class E>
E spelled(const std::string& what, pybind11::handle spelling) {
  if (const E* value = meaning<E>(spelling)) return *value;
  std::string expected;
  for (const auto& [name, value] : kSpellings<E>) expected += (expected.empty() ? "'" : ", '") + std::string(name) + "'";
  throw pybind11::value_error(what + ": got " + pybind11::repr(spelling).cast<std::string>() + ", expected one of " + expected);
}

}  // namespace xlstm::python
