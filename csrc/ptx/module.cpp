// module.cpp - the Python module _ptx: the project's bindings of the kernels, and what configures the interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "abi.h"
#include "build_config.h"
#include "kernel_bindings.h"
#include "ptx/allocations.h"
#include "ptx/cudart.h"

namespace py = pybind11;

namespace xlstm::ptx {
namespace {

void configure(const std::string& target, int architecture, int processors, int shared_limit, uint64_t seed, bool late,
               bool starve, bool reads, bool races, bool float32_products) {
  settings = {target, architecture, processors, shared_limit, seed, late, starve, reads, races, float32_products};
}

void run_ptx(const std::string& text, const std::string& kernel, py::buffer memory, uint32_t grid, uint32_t block,
             uint32_t cluster, uint32_t shared_bytes, bool cooperative) {
  const py::buffer_info info = memory.request(true);
  const auto address = reinterpret_cast<uint64_t>(info.ptr);
  std::vector<uint8_t> parameters(8);
  std::memcpy(parameters.data(), &address, 8);
  add_allocation(info.ptr, uint64_t(info.size * info.itemsize));
  const struct Remove {
    void* p;
    ~Remove() { remove_allocation(p); }
  } remove{info.ptr};
  run_text(text, kernel, {grid, block, cluster, shared_bytes, cooperative}, parameters);
}

}  // namespace
}  // namespace xlstm::ptx

PYBIND11_MODULE(_ptx, m) {
  using namespace xlstm::ptx;
  m.attr("version") = XLSTM_VERSION;
  m.attr("abi_version") = xlstm::kAbiVersion;
  m.attr("targets") = targets();
  m.def("ptx_configure", &configure, py::kw_only(), py::arg("target"), py::arg("architecture"), py::arg("processors"),
        py::arg("shared_limit"), py::arg("seed"), py::arg("late"), py::arg("starve"), py::arg("reads"), py::arg("races"),
        py::arg("float32_products"), "how the launches that follow run; see struct Settings in machine.h");
  m.def("ptx_launches", &launches, "how many launches have run to their end");
  m.def("ptx_watch_allocations", &watch_allocations, "PyTorch's CPU tensors that are made from now on are known to the byte");
  m.def("ptx_run", &run_ptx, py::kw_only(), py::arg("text"), py::arg("kernel"), py::arg("memory"), py::arg("grid") = 1,
        py::arg("block") = 32, py::arg("cluster") = 1, py::arg("shared_bytes") = 0, py::arg("cooperative") = false,
        "one launch of a kernel in PTX text, whose only parameter is the address of a writable buffer");
  xlstm::bind_kernels(m);
}
