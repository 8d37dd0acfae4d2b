#pragma once
#include <pybind11/pybind11.h>

namespace xlstm {
void bind_kernels(pybind11::module_& m);
}
