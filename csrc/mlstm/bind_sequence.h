// bind_sequence.h - Python functions of the chunkwise kernels; defined in bind_sequence.cpp.
#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::mlstm {
void bind_sequence(pybind11::module_& m);
}
