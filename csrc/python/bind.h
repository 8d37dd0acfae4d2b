// bind.h - the parts of the Python modules: _C has bind_cpu, and bind_kernels where nvcc is; _simt and its variants bind_kernels.
#pragma once
#include <pybind11/pybind11.h>

namespace xlstm::python {

void bind_cpu(pybind11::module_& m);
void bind_kernels(pybind11::module_& m);
void bind_build(pybind11::module_& m);  // version, compiler, and a hash of the names of the kernels' fields

}  // namespace xlstm::python
