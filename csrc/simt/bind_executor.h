#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::simt {
void bind_executor(pybind11::module_& m);
}
