// module.cpp - the Python modules of the host executor. One object file serves the plain, the instrumented and the sanitized one.
#include <pybind11/pybind11.h>

#include "python/bind.h"
#include "simt/bind_executor.h"

namespace py = pybind11;

namespace {
void bind(py::module_& m) {
  xlstm::python::bind_build(m);
  xlstm::python::bind_kernels(m);
  xlstm::simt::bind_executor(m);
}
}  // namespace

PYBIND11_MODULE(_simt, m) { bind(m); }
PYBIND11_MODULE(_simt_trace, m) { bind(m); }
PYBIND11_MODULE(_simt_asan, m) { bind(m); }
