// bindings.cpp - the Python face of the kernels: pointers, sizes and a stream go in, a typed exception comes out.
// Compiled twice: into _C (CPU backend, and the CUDA kernels where nvcc is) and, with XLSTM_SIMT_MODULE, into _simt and its
// instrumented variants (the same kernels on the host executor).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_config.h"
#include "cpu/threads.h"
#include "mlstm/params.h"
#ifdef XLSTM_SIMT_MODULE
#undef XLSTM_WITH_CUDA
#include "simt/bind_executor.h"
#endif
#ifdef XLSTM_WITH_CUDA
#include <cuda_runtime_api.h>
#endif
#if defined(XLSTM_WITH_CUDA) || defined(XLSTM_SIMT_MODULE)
#define XLSTM_WITH_KERNELS
#include "mlstm/bind_sequence.h"
#endif
#ifdef XLSTM_SELFTEST
#include "simt/selftest/bind.h"
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

#ifdef XLSTM_WITH_KERNELS
using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

xlstm::ElementType element_type(const std::string& name) {
  if (name == "float32") return xlstm::ElementType::Float32;
  if (name == "bfloat16") return xlstm::ElementType::BFloat16;
  if (name == "float16") return xlstm::ElementType::Float16;
  throw py::type_error("element type: got " + name + ", expected float32, bfloat16 or float16");
}

xlstm::InputGate input_gate(const std::string& name) {
  if (name == "exp") return xlstm::InputGate::Exponential;
  if (name == "sigmoid") return xlstm::InputGate::Sigmoid;
  throw py::value_error("igate: got '" + name + "', expected 'exp' or 'sigmoid'");
}

using Strides = std::pair<int64_t, int64_t>;  // batch, head

void mlstm_step(Address q, Address k, Address v, Address i, Address f, Address C, Address n, Address m, Address h, Address C_new, Address n_new,
                Address m_new, int64_t B, int64_t NH, int DHQK, int DHHV, const std::string& dtype, const std::string& gate_dtype,
                Strides q_strides, Strides k_strides, Strides v_strides, Strides i_strides, Strides f_strides, float scale,
                const std::string& igate, bool normalize, float eps, Address stream) {
  xlstm::mlstm::StepParams p{};
  p.B = B, p.NH = NH, p.DHQK = DHQK, p.DHHV = DHHV;
  p.element = element_type(dtype), p.gate_element = element_type(gate_dtype);
  p.input_gate = input_gate(igate);
  p.normalize = normalize, p.scale = scale, p.eps = eps;
  p.q = pointer(q), p.k = pointer(k), p.v = pointer(v), p.i = pointer(i), p.f = pointer(f);
  p.C = pointer<float>(C), p.n = pointer<float>(n), p.m = pointer<float>(m), p.h = pointer(h);
  p.C_new = pointer<float>(C_new), p.n_new = pointer<float>(n_new), p.m_new = pointer<float>(m_new);
  const auto strides = [](Strides s) { return xlstm::mlstm::HeadStrides{s.first, s.second}; };
  p.q_strides = strides(q_strides), p.k_strides = strides(k_strides), p.v_strides = strides(v_strides);
  p.i_strides = strides(i_strides), p.f_strides = strides(f_strides);
  const py::gil_scoped_release release;
  xlstm::mlstm::step(p, pointer(stream));
}

void bind_kernels(py::module_& m) {
  m.def("mlstm_step", &mlstm_step, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("i"), py::arg("f"), py::arg("C"),
        py::arg("n"), py::arg("m"), py::arg("h"), py::arg("C_new"), py::arg("n_new"), py::arg("m_new"), py::arg("B"), py::arg("NH"),
        py::arg("DHQK"), py::arg("DHHV"), py::arg("dtype"), py::arg("gate_dtype"), py::arg("q_strides"), py::arg("k_strides"),
        py::arg("v_strides"), py::arg("i_strides"), py::arg("f_strides"), py::arg("scale"), py::arg("igate"), py::arg("normalize"),
        py::arg("eps"), py::arg("stream"), "one token of the mLSTM, M1-M3; arguments as in mlstm::StepParams, tensors as addresses");
  xlstm::mlstm::bind_sequence(m);
}
#endif

void bind(py::module_& m) {
  bind_build(m);
#ifdef XLSTM_WITH_KERNELS
  bind_kernels(m);
#endif
#ifdef XLSTM_SELFTEST
  xlstm::selftest::bind(m);
#endif
#ifdef XLSTM_SIMT_MODULE
  xlstm::simt::bind_executor(m);
#endif
}

}  // namespace

#ifdef XLSTM_SIMT_MODULE  // one object file serves the plain, the instrumented and the sanitized module
PYBIND11_MODULE(_simt, m) { bind(m); }
PYBIND11_MODULE(_simt_trace, m) { bind(m); }
PYBIND11_MODULE(_simt_asan, m) { bind(m); }
#else
PYBIND11_MODULE(XLSTM_MODULE, m) { bind(m); }
#endif
