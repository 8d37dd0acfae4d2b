// bind_mlstm.h - the mLSTM over sequences for Python.
#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::cpu {
void bind_mlstm(pybind11::module_& m);
}  // namespace xlstm::cpu
