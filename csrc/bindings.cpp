// bindings.cpp - the Python face of the kernels: pointers, sizes and a stream go in, a typed exception comes out.
// Compiled twice: into _C (CPU backend, and the CUDA kernels where nvcc is) and into _simt (the CUDA kernels on the host executor).
#include <pybind11/pybind11.h>

#include "build_config.h"
#include "cpu/threads.h"
#ifdef XLSTM_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

int device_count() {
#ifdef XLSTM_WITH_CUDA
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
#endif
  return 0;
}

void bind_build(py::module_& m) {
  m.attr("version") = XLSTM_VERSION;
  m.attr("abi_version") = 1;  // raised with every change of a binding's signature; xlstm_cuda/native.py expects this number
#ifdef XLSTM_WITH_CUDA
  m.attr("cuda_architectures") = XLSTM_ARCHITECTURES;
  m.attr("cuda_version") = CUDART_VERSION;
#else
  m.attr("cuda_architectures") = "";
  m.attr("cuda_version") = 0;
#endif
  m.attr("compiler") = __VERSION__;
  m.def("device_count", &device_count, "number of CUDA devices; 0 without a driver");
  m.def("set_num_threads", &xlstm::cpu::set_num_threads, py::arg("count"), "threads of the CPU backend; 0 means every core");
  m.def("get_num_threads", &xlstm::cpu::get_num_threads);
}

}  // namespace

PYBIND11_MODULE(XLSTM_MODULE, m) { bind_build(m); }
