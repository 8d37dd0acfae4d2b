// module.cpp - the Python module _C: what this build is, the CPU backend, and the CUDA kernels where nvcc is.
// (_simt is simt/module.cpp.)
#include "build_config.h"
#include "python/bind.h"
#ifdef XLSTM_WITH_CUDA
#include <cuda_runtime_api.h>
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
  xlstm::python::bind_cpu(m);
}
