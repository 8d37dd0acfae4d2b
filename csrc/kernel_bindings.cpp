// kernel_bindings.cpp - the CUDA kernels for Python: tensors as addresses, keyword arguments, a typed exception out.
// Part of _C where nvcc is, and of _simt and its variants, where the same kernels run on the host executor.
#include "kernel_bindings.h"

#include <pybind11/stl.h>

#include "mlstm/bind_sequence.h"
#include "mlstm/params.h"
#include "slstm/bind.h"
#ifdef XLSTM_SELFTEST
#include "simt/selftest/bind.h"
#endif

namespace py = pybind11;

namespace xlstm {
namespace {

using Address = std::uintptr_t;               // tensor.data_ptr(), 0 for none
using Strides = std::pair<int64_t, int64_t>;  // batch, head; in elements

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

ElementType element_type(const std::string& name) {
  if (name == "float32") return ElementType::Float32;
  if (name == "bfloat16") return ElementType::BFloat16;
  if (name == "float16") return ElementType::Float16;
  throw py::type_error("element type: got " + name + ", expected float32, bfloat16 or float16");
}

InputGate input_gate(const std::string& name) {
  if (name == "exp") return InputGate::Exponential;
  if (name == "sigmoid") return InputGate::Sigmoid;
  throw py::value_error("igate: got '" + name + "', expected 'exp' or 'sigmoid'");
}

mlstm::HeadStrides head_strides(Strides s) { return {s.first, s.second}; }

void mlstm_step(Address q, Address k, Address v, Address i, Address f, Address C, Address n, Address m, Address h, Address C_new,
                Address n_new, Address m_new, int64_t B, int64_t NH, int DHQK, int DHHV, const std::string& dtype,
                const std::string& gate_dtype, Strides q_strides, Strides k_strides, Strides v_strides, Strides i_strides,
                Strides f_strides, float scale, const std::string& igate, bool normalize, float eps, Address stream) {
  mlstm::StepParams p{};
  p.B = B, p.NH = NH, p.DHQK = DHQK, p.DHHV = DHHV;
  p.element = element_type(dtype), p.gate_element = element_type(gate_dtype);
  p.input_gate = input_gate(igate);
  p.normalize = normalize, p.scale = scale, p.eps = eps;
  p.q = at(q), p.k = at(k), p.v = at(v), p.i = at(i), p.f = at(f);
  p.C = at<float>(C), p.n = at<float>(n), p.m = at<float>(m), p.h = at(h);
  p.C_new = at<float>(C_new), p.n_new = at<float>(n_new), p.m_new = at<float>(m_new);
  p.q_strides = head_strides(q_strides), p.k_strides = head_strides(k_strides), p.v_strides = head_strides(v_strides);
  p.i_strides = head_strides(i_strides), p.f_strides = head_strides(f_strides);
  const py::gil_scoped_release release;
  mlstm::step(p, at(stream));
}

}  // namespace

void bind_kernels(py::module_& m) {
  m.def("mlstm_step", &mlstm_step, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("i"), py::arg("f"),
        py::arg("C"), py::arg("n"), py::arg("m"), py::arg("h"), py::arg("C_new"), py::arg("n_new"), py::arg("m_new"),
        py::arg("B"), py::arg("NH"), py::arg("DHQK"), py::arg("DHHV"), py::arg("dtype"), py::arg("gate_dtype"),
        py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"), py::arg("i_strides"), py::arg("f_strides"),
        py::arg("scale"), py::arg("igate"), py::arg("normalize"), py::arg("eps"), py::arg("stream"),
        "one token of the mLSTM, M1-M3; arguments as in mlstm::StepParams, tensors as addresses");
  mlstm::bind_sequence(m);
  slstm::bind_slstm(m);
#ifdef XLSTM_SELFTEST
  selftest::bind(m);
#endif
}

}  // namespace xlstm
