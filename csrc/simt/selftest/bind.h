#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::selftest {
void bind(pybind11::module_& m);
}
