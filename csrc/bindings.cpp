// bindings.cpp - the Python module _C: what this build is, the CPU backend, and the CUDA kernels where nvcc is.
// Pointers, sizes and a stream go in, a typed exception comes out. (_simt is simt/module.cpp.)
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "abi.h"
#include "build_config.h"
#include "cpu/bind_mlstm.h"
#include "cpu/conv.h"
#include "cpu/gate_math.h"
#include "cpu/isa.h"
#include "cpu/mlstm_step.h"
#include "cpu/slstm.h"
#include "cpu/slstm_kernels.h"
#ifdef XLSTM_WITH_CUDA
#include <cuda_runtime_api.h>

#include "kernel_bindings.h"
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
  m.attr("abi_version") = xlstm::kAbiVersion;
#ifdef XLSTM_WITH_CUDA
  m.attr("cuda_architectures") = XLSTM_ARCHITECTURES;
  m.attr("cuda_version") = CUDART_VERSION;
#else
  m.attr("cuda_architectures") = "";
  m.attr("cuda_version") = 0;
#endif
  m.attr("compiler") = __VERSION__;
  m.def("device_count", &device_count, "number of CUDA devices; 0 without a driver");
}

using Address = uintptr_t;  // tensor.data_ptr(), 0 for None
template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

xlstm::slstm::Shape slstm_shape(int64_t B, int64_t S, int64_t NH, int64_t DH, Address cu_seqlens, Address reset,
                                int64_t reset_stride_b, int64_t reset_stride_s, bool exp_forget_gate) {
  xlstm::slstm::Shape shape;
  shape.B = B, shape.S = S, shape.NH = NH, shape.DH = DH;
  shape.cu_seqlens = at<const int32_t>(cu_seqlens);
  shape.reset = at<const uint8_t>(reset);
  shape.reset_stride_b = reset_stride_b, shape.reset_stride_s = reset_stride_s;
  shape.forget_gate = exp_forget_gate ? xlstm::slstm::ForgetGate::kExp : xlstm::slstm::ForgetGate::kSigmoid;
  return shape;
}

template <typename Real>
void slstm_forward_cpu(const xlstm::slstm::Shape& shape, Address x, const std::array<int64_t, 4>& x_strides, Address R, Address b,
                       Address h0, Address c0, Address n0, Address m0, Address h, Address h_last, Address c_last, Address n_last,
                       Address m_last, Address saved_gates, Address saved_cells, bool single_step, int threads) {
  xlstm::slstm::ForwardParams<Real, Real> p;
  p.shape = shape;
  p.x = at<const Real>(x);
  p.x_stride_b = x_strides[0], p.x_stride_s = x_strides[1], p.x_stride_g = x_strides[2], p.x_stride_n = x_strides[3];
  p.R = at<const Real>(R), p.b = at<const Real>(b);
  p.h0 = at<const Real>(h0), p.c0 = at<const Real>(c0), p.n0 = at<const Real>(n0), p.m0 = at<const Real>(m0);
  p.h = at<Real>(h);
  p.h_last = at<Real>(h_last), p.c_last = at<Real>(c_last), p.n_last = at<Real>(n_last), p.m_last = at<Real>(m_last);
  p.saved_gates = at<Real>(saved_gates), p.saved_cells = at<Real>(saved_cells);
  p.single_step = single_step;
  xlstm::cpu::slstm_forward(p, threads);
}

template <typename Real>
void slstm_backward_cpu(const xlstm::slstm::Shape& shape, Address R, Address h0, Address c0, Address n0, Address saved_gates,
                        Address saved_cells, Address dh, const std::array<int64_t, 3>& dh_strides, Address dh_last,
                        Address dc_last, Address dn_last, Address dx, Address h_prev, Address db_rows, Address dh0, Address dc0,
                        Address dn0, Address dm0, int threads) {
  xlstm::slstm::BackwardParams<Real, Real> p;
  p.shape = shape;
  p.R = at<const Real>(R);
  p.h0 = at<const Real>(h0), p.c0 = at<const Real>(c0), p.n0 = at<const Real>(n0);
  p.saved_gates = at<const Real>(saved_gates), p.saved_cells = at<const Real>(saved_cells);
  p.dh = at<const Real>(dh);
  p.dh_stride_b = dh_strides[0], p.dh_stride_s = dh_strides[1], p.dh_stride_n = dh_strides[2];
  p.dh_last = at<const Real>(dh_last), p.dc_last = at<const Real>(dc_last), p.dn_last = at<const Real>(dn_last);
  p.dx = at<Real>(dx), p.h_prev = at<Real>(h_prev), p.db_rows = at<Real>(db_rows);
  p.dh0 = at<Real>(dh0), p.dc0 = at<Real>(dc0), p.dn0 = at<Real>(dn0), p.dm0 = at<Real>(dm0);
  xlstm::cpu::slstm_backward(p, threads);
}

template <typename Real>
void bind_slstm_cpu(py::module_& m, const std::string& type) {
  const py::call_guard<py::gil_scoped_release> released;
  m.def(("slstm_forward_cpu_" + type).c_str(), &slstm_forward_cpu<Real>, released, py::arg("shape"), py::arg("x"),
        py::arg("x_strides"), py::arg("R"), py::arg("b"), py::arg("h0"), py::arg("c0"), py::arg("n0"), py::arg("m0"),
        py::arg("h"), py::arg("h_last"), py::arg("c_last"), py::arg("n_last"), py::arg("m_last"), py::arg("saved_gates"),
        py::arg("saved_cells"), py::arg("single_step"), py::arg("threads"));
  m.def(("slstm_backward_cpu_" + type).c_str(), &slstm_backward_cpu<Real>, released, py::arg("shape"), py::arg("R"),
        py::arg("h0"), py::arg("c0"), py::arg("n0"), py::arg("saved_gates"), py::arg("saved_cells"), py::arg("dh"),
        py::arg("dh_strides"), py::arg("dh_last"), py::arg("dc_last"), py::arg("dn_last"), py::arg("dx"), py::arg("h_prev"),
        py::arg("db_rows"), py::arg("dh0"), py::arg("dc0"), py::arg("dn0"), py::arg("dm0"), py::arg("threads"));
}

// tensors: q, k, v, i, f, C, n, m, then the results h, C, n, m.
template <typename Real>
void mlstm_step_cpu(int64_t rows, int64_t DHQK, int64_t DHHV, const std::array<Address, 12>& tensors, double scale, double eps,
                    bool sigmoid_igate, bool normalize, int threads) {
  xlstm::cpu::MlstmStep<Real> p;
  p.rows = rows, p.DHQK = DHQK, p.DHHV = DHHV;
  p.q = at<const Real>(tensors[0]), p.k = at<const Real>(tensors[1]), p.v = at<const Real>(tensors[2]);
  p.i = at<const Real>(tensors[3]), p.f = at<const Real>(tensors[4]);
  p.C = at<const Real>(tensors[5]), p.n = at<const Real>(tensors[6]), p.m = at<const Real>(tensors[7]);
  p.h = at<Real>(tensors[8]);
  p.C_last = at<Real>(tensors[9]), p.n_last = at<Real>(tensors[10]), p.m_last = at<Real>(tensors[11]);
  p.scale = static_cast<Real>(scale), p.eps = static_cast<Real>(eps);
  p.sigmoid_igate = sigmoid_igate, p.normalize = normalize;
  xlstm::cpu::mlstm_step(p, threads);
}

template <typename Real>
void bind_mlstm_cpu(py::module_& m, const std::string& type) {
  m.def(("mlstm_step_cpu_" + type).c_str(), &mlstm_step_cpu<Real>, py::call_guard<py::gil_scoped_release>(), py::arg("rows"),
        py::arg("DHQK"), py::arg("DHHV"), py::arg("tensors"), py::arg("scale"), py::arg("eps"), py::arg("sigmoid_igate"),
        py::arg("normalize"), py::arg("threads"));
}

// shape: B, D, K, steps of held; tensors: x, held (0 for none), weight, bias, then the results window, y.
template <typename Real>
void conv_step_cpu(const std::array<int64_t, 4>& shape, const std::array<Address, 6>& tensors, int threads) {
  xlstm::cpu::ConvStep<Real> p;
  p.B = shape[0], p.D = shape[1], p.K = shape[2], p.held_steps = shape[3];
  p.x = at<const Real>(tensors[0]), p.held = at<const Real>(tensors[1]);
  p.w = at<const Real>(tensors[2]), p.b = at<const Real>(tensors[3]);
  p.window = at<Real>(tensors[4]), p.y = at<Real>(tensors[5]);
  xlstm::cpu::conv_step(p, threads);
}

template <typename Real>
void conv_forward_cpu(const std::array<int64_t, 4>& shape, Address x, Address w, Address b, Address y, int threads) {
  xlstm::cpu::ConvForward<Real> p;
  p.shape = {shape[0], shape[1], shape[2], shape[3]};
  p.x = at<const Real>(x), p.w = at<const Real>(w), p.b = at<const Real>(b), p.y = at<Real>(y);
  xlstm::cpu::conv_forward(p, threads);
}

template <typename Real>
void conv_backward_cpu(const std::array<int64_t, 4>& shape, Address x, Address w, Address dy, Address dx, Address sums,
                       int threads) {
  xlstm::cpu::ConvBackward<Real> p;
  p.shape = {shape[0], shape[1], shape[2], shape[3]};
  p.x = at<const Real>(x), p.w = at<const Real>(w), p.dy = at<const Real>(dy), p.dx = at<Real>(dx), p.sums = at<Real>(sums);
  xlstm::cpu::conv_backward(p, threads);
}

template <typename Real>
void bind_conv_cpu(py::module_& m, const std::string& type) {
  const py::call_guard<py::gil_scoped_release> released;
  m.def(("conv_step_cpu_" + type).c_str(), &conv_step_cpu<Real>, released, py::arg("shape"), py::arg("tensors"),
        py::arg("threads"));
  m.def(("conv_forward_cpu_" + type).c_str(), &conv_forward_cpu<Real>, released, py::arg("shape"), py::arg("x"), py::arg("w"),
        py::arg("b"), py::arg("y"), py::arg("threads"));
  m.def(("conv_backward_cpu_" + type).c_str(), &conv_backward_cpu<Real>, released, py::arg("shape"), py::arg("x"), py::arg("w"),
        py::arg("dy"), py::arg("dx"), py::arg("sums"), py::arg("threads"));
}

void gate_math(xlstm::cpu::GateFunction function, Address x, Address y, int64_t count) {
  using namespace xlstm::cpu;
  switch (selected_isa()) {
#ifdef XLSTM_X86_64
    case Isa::kAvx512:
      return avx512::gate_math(function, at<const float>(x), at<float>(y), count);
    case Isa::kAvx2:
      return avx2::gate_math(function, at<const float>(x), at<float>(y), count);
#endif
    default:
      return baseline::gate_math(function, at<const float>(x), at<float>(y), count);
  }
}

void bind_cpu(py::module_& m) {
  m.attr("UNIT_PADDING") = xlstm::cpu::kUnitPadding;
  m.def("cpu_isas", &xlstm::cpu::supported_isas, "instruction sets of the CPU backend that this CPU can run");
  m.def("cpu_isa", [] { return xlstm::cpu::isa_name(xlstm::cpu::selected_isa()); }, "the instruction set in use");
  m.def("select_cpu_isa", &xlstm::cpu::select_isa, py::arg("name"), "for tests: use this one; '' returns to the default");
  using xlstm::cpu::GateFunction;
  py::enum_<GateFunction>(m, "GateFunction")
      .value("exp2", GateFunction::kExp2)
      .value("log2", GateFunction::kLog2)
      .value("log2_1p", GateFunction::kLog2Of1p)
      .value("rcp", GateFunction::kRcp)
      .value("sigmoid", GateFunction::kSigmoid)
      .value("log_sigmoid", GateFunction::kLogSigmoid);
  m.def("gate_math", &gate_math, py::arg("function"), py::arg("x"), py::arg("y"), py::arg("count"),
        "for tests: a function of csrc/device/math.cuh over float32 arrays");
  py::class_<xlstm::slstm::Shape>(m, "SLSTMShape")
      .def(py::init(&slstm_shape), py::kw_only(), py::arg("B"), py::arg("S"), py::arg("NH"), py::arg("DH"), py::arg("cu_seqlens"),
           py::arg("reset"), py::arg("reset_stride_b"), py::arg("reset_stride_s"), py::arg("exp_forget_gate"));
  bind_slstm_cpu<float>(m, "float32");
  bind_slstm_cpu<double>(m, "float64");
  m.def("conv_tiles", &xlstm::cpu::conv_tiles, py::arg("steps"), "tiles that conv_backward_cpu keeps sums of");
  bind_conv_cpu<float>(m, "float32");
  bind_conv_cpu<double>(m, "float64");
  bind_mlstm_cpu<float>(m, "float32");
  bind_mlstm_cpu<double>(m, "float64");
  xlstm::cpu::bind_mlstm(m);
}

}  // namespace

PYBIND11_MODULE(XLSTM_MODULE, m) {
  bind_build(m);
  bind_cpu(m);
#ifdef XLSTM_WITH_CUDA
  xlstm::bind_kernels(m);
#endif
}
