// module.cpp - the Python modules of the host executor. One object file serves the plain, the instrumented and the sanitized one.
#include <pybind11/pybind11.h>

#include "abi.h"
#include "build_config.h"
#include "kernel_bindings.h"
#include "simt/bind_executor.h"

namespace py = pybind11;

namespace {
void bind(py::module_& m) {
  m.attr("version") = XLSTM_VERSION;
  m.attr("abi_version") = xlstm::kAbiVersion;
  xlstm::bind_kernels(m);
  xlstm::simt::bind_executor(m);
}
}  // namespace

PYBIND11_MODULE(_simt, m) { bind(m); }
PYBIND11_MODULE(_simt_trace, m) { bind(m); }
PYBIND11_MODULE(_simt_asan, m) { bind(m); }
