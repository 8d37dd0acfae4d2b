// module.cpp - the Python module _C: what this build is, the CPU backend, and the CUDA kernels where nvcc is.
// (_simt is simt/module.cpp.)
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "build_config.h"
#include "python/bind.h"
#ifdef XLSTM_WITH_CUDA
#include <cuda_runtime_api.h>

#include "mlstm/any_kernel.h"
#endif

namespace {

int device_count() {
#ifdef XLSTM_WITH_CUDA
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
#endif
  return 0;
}

// Why the kernels do not run on this device: the name of CUDA's error and its words; two empty strings where they do.
std::pair<std::string, std::string> cuda_problem([[maybe_unused]] int device) {
#ifdef XLSTM_WITH_CUDA
  int before = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) {
    error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, xlstm::mlstm::any_kernel());
    (void)cudaSetDevice(before);  // also after an error: PyTorch allocates on the current device
  }
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return {cudaGetErrorName(error), cudaGetErrorString(error)};
  }
#endif
  return {};
}

}  // namespace

PYBIND11_MODULE(XLSTM_MODULE, m) {
  xlstm::python::bind_build(m);
#ifdef XLSTM_WITH_CUDA
  m.attr("cuda_architectures") = XLSTM_ARCHITECTURES;
  m.attr("cuda_version") = CUDART_VERSION;
  xlstm::python::bind_kernels(m);
#else
  m.attr("cuda_architectures") = "";
  m.attr("cuda_version") = 0;
#endif
  m.def("device_count", &device_count, "number of CUDA devices; 0 without a driver");
  m.def("cuda_problem", &cuda_problem, "(error, words) of CUDA where the kernels do not run on device `index`, else two ''");
  xlstm::python::bind_cpu(m);
}
