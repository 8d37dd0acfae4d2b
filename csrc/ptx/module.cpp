// module.cpp - the Python module _ptx: the project's bindings of the kernels, and what configures the interpreter.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ptx/allocations.h"
#include "ptx/cudart.h"
#include "python/bind.h"

namespace py = pybind11;

namespace xlstm::ptx {
namespace {

void configure(const std::string& target, int architecture, int processors, int shared_limit, uint64_t seed, bool late,
               bool starve, bool reads, bool races, bool float32_products) {
  settings = {target, architecture, processors, shared_limit, seed, late, starve, reads, races, float32_products};
}

// Buffers become addresses, integers 32 bits.
class Arguments {
 public:
  explicit Arguments(const py::sequence& values) {
    for (const py::handle value : values) {
      if (py::isinstance<py::int_>(value)) {
        append(value.cast<int32_t>());
        continue;
      }
      buffers.push_back(py::reinterpret_borrow<py::buffer>(value).request(true));
      const py::buffer_info& info = buffers.back();
      add_allocation(info.ptr, uint64_t(info.size * info.itemsize));
      append(reinterpret_cast<uint64_t>(info.ptr));
    }
  }
  ~Arguments() {
    for (const py::buffer_info& info : buffers) remove_allocation(info.ptr);
  }
  std::vector<uint8_t> bytes;

 private:
  template <class T>
  void append(T value) {
    const size_t at = (bytes.size() + sizeof value - 1) / sizeof value * sizeof value;
    bytes.resize(at + sizeof value);
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  std::vector<py::buffer_info> buffers;
};

void run_ptx(const std::string& text, const std::string& kernel, const py::sequence& arguments, uint32_t grid, uint32_t block,
             uint32_t cluster, uint32_t shared_bytes, bool cooperative) {
  const Arguments values(arguments);
  run_text(text, kernel, {grid, block, cluster, shared_bytes, cooperative}, values.bytes);
}

}  // namespace
}  // namespace xlstm::ptx

PYBIND11_MODULE(_ptx, m) {
  using namespace xlstm::ptx;
  xlstm::python::bind_build(m);
  xlstm::python::bind_kernels(m);
  m.attr("targets") = targets();
  m.def("ptx_configure", &configure, py::kw_only(), py::arg("target"), py::arg("architecture"), py::arg("processors"),
        py::arg("shared_limit"), py::arg("seed"), py::arg("late"), py::arg("starve"), py::arg("reads"), py::arg("races"),
        py::arg("float32_products"), "how the launches that follow run; see struct Settings in machine.h");
  m.def("ptx_launches", &launches, "how many launches have run to their end");
  m.def("ptx_set_device", &set_current_device, "makes one of ptx_devices equal devices the current one of this thread");
  m.def("ptx_device", &current_device, "the current device of this thread");
  m.attr("ptx_devices") = kDevices;
  m.def("ptx_hold_clusters", &hold_clusters, py::arg("device"), py::arg("holds"), "False: no cluster fits this device");
  m.def("ptx_fail_next", &fail_next, py::arg("function"), py::arg("error"),
        "the next call of this function of the CUDA runtime fails with this cudaError_t");
  m.def(
      "ptx_calls",
      [] {
        py::list all;
        for (const Call& c : calls()) all.append(py::make_tuple(c.function, c.device, c.kernel, c.value));
        return all;
      },
      "(function, current device, kernel, value) of the runtime's last calls (at most 1000) since this was asked");
  m.def("ptx_watch_allocations", &watch_allocations, "PyTorch's CPU tensors that are made from now on are known to the byte");
  m.def("ptx_run", &run_ptx, py::kw_only(), py::arg("text"), py::arg("kernel"), py::arg("arguments"), py::arg("grid") = 1,
        py::arg("block") = 32, py::arg("cluster") = 1, py::arg("shared_bytes") = 0, py::arg("cooperative") = false,
        "one launch of a kernel in PTX text; its arguments are writable buffers and 32-bit integers");
}
