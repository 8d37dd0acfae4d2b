// bind.h - Python functions of the sLSTM kernels; defined in bind.cpp.
#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::slstm {
void bind_slstm(pybind11::module_& m);
}
