// bind.cpp - the test kernels for Python.
#include "simt/selftest/bind.h"

#include <pybind11/stl.h>

#include "simt/selftest/mlstm_tile.h"
#include "simt/selftest/primitives.h"

namespace py = pybind11;

namespace xlstm::selftest {
namespace {
using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void run_primitive(const std::string& name, Address in, Address out, int n, Address stream) {
  const py::gil_scoped_release release;
  run(name, pointer<const uint32_t>(in), pointer<uint32_t>(out), n, pointer<void>(stream));
}

void run_tile(Address q, Address k, Address v, Address F, Address I, Address h, Address m, int BH, int S, Address stream) {
  const py::gil_scoped_release release;
  mlstm_tile(pointer<const void>(q), pointer<const void>(k), pointer<const void>(v), pointer<const float>(F),
             pointer<const float>(I), pointer<float>(h), pointer<float>(m), BH, S, pointer<void>(stream));
}
}  // namespace

void bind(py::module_& m) {
  m.def("primitive_names", &names, "the test kernels of this module");
  m.def("run_primitive", &run_primitive, py::kw_only(), py::arg("name"), py::arg("input"), py::arg("output"), py::arg("n"),
        py::arg("stream"), "one launch of a test kernel; input and output are addresses of 32-bit words");
  m.def("mlstm_tile", &run_tile, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("F"), py::arg("I"),
        py::arg("h"), py::arg("m"), py::arg("BH"), py::arg("S"), py::arg("stream"),
        "the tensor-core test kernel, head dim 64; arguments as in selftest/mlstm_tile.h");
}

}  // namespace xlstm::selftest
