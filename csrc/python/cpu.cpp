// cpu.cpp - the CPU backend's launchers for Python, in float32 and float64.
#include <pybind11/stl.h>

#include "cpu/block_step.h"
#include "cpu/conv.h"
#include "cpu/gate_math.h"
#include "cpu/isa.h"
#include "cpu/mlstm.h"
#include "cpu/mlstm_layer.h"
#include "cpu/mlstm_step.h"
#include "cpu/slstm.h"
#include "cpu/slstm_kernels.h"
#include "cpu/slstm_layer.h"
#include "python/bind.h"
#include "python/reader.h"

namespace xlstm::python {

using namespace cpu;

namespace {

template <class Real>
void bind_launchers(py::module_& m, const std::string& type) {  // qualified, or std::bind would be meant
  python::bind(m, "slstm_forward_cpu_" + type, &slstm_forward<Real>);
  python::bind(m, "slstm_backward_cpu_" + type, &slstm_backward<Real>);
  python::bind(m, "slstm_recurrent_gradient_cpu_" + type, &slstm_recurrent_gradient<Real>);
  python::bind(m, "slstm_layer_forward_cpu_" + type, &slstm_layer_forward<Real>);
  python::bind(m, "slstm_layer_backward_cpu_" + type, &slstm_layer_backward<Real>);
  python::bind(m, "mlstm_step_cpu_" + type, &mlstm_step<Real>);
  python::bind(m, "mlstm_forward_cpu_" + type, &mlstm_forward<Real>);
  python::bind(m, "mlstm_backward_cpu_" + type, &mlstm_backward<Real>);
  python::bind(m, "mlstm_layer_inputs_cpu_" + type, &mlstm_layer<MlstmLayerInputs<Real>>);
  python::bind(m, "mlstm_layer_output_cpu_" + type, &mlstm_layer<MlstmLayerOutput<Real>>);
  python::bind(m, "mlstm_layer_output_backward_cpu_" + type, &mlstm_layer<MlstmLayerOutputBackward<Real>>);
  python::bind(m, "mlstm_layer_inputs_backward_cpu_" + type, &mlstm_layer<MlstmLayerInputsBackward<Real>>);
  python::bind(m, "mlstm_block_step_cpu_" + type, &mlstm_block_step<Real>);
  python::bind(m, "slstm_block_step_cpu_" + type, &slstm_block_step<Real>);
  python::bind(m, "conv_step_cpu_" + type, &conv_step<Real>);
  python::bind(m, "conv_forward_cpu_" + type, &conv_forward<Real>);
  python::bind(m, "conv_backward_cpu_" + type, &conv_backward<Real>);
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.attr("UNIT_PADDING") = kUnitPadding;
  m.def("cpu_isas", &supported_isas, "instruction sets of the CPU backend that this CPU can run");
  m.def("cpu_isa", [] { return isa_name(selected_isa()); }, "the instruction set in use");
  m.def("select_cpu_isa", &select_isa, "for tests: use this one; '' returns to the default");
  m.attr("MOST_TAPS") = kMostTaps;
  m.def("mlstm_border_numbers", &border_numbers, "numbers of a head's states between chunks, which mlstm_forward_cpu may keep");
  m.def("conv_tiles", &conv_tiles, "tiles that conv_backward_cpu keeps sums of");
  bind_launchers<float>(m, "float32");
  bind_launchers<double>(m, "float64");
  py::enum_<GateFunction>(m, "GateFunction")
      .value("exp2", GateFunction::kExp2)
      .value("log2", GateFunction::kLog2)
      .value("log2_1p", GateFunction::kLog2Of1p)
      .value("rcp", GateFunction::kRcp)
      .value("sigmoid", GateFunction::kSigmoid)
      .value("log_sigmoid", GateFunction::kLogSigmoid);
  m.def(
      "gate_math",
      [](GateFunction function, uintptr_t x, uintptr_t y, int64_t count) {
        XLSTM_OF_ISA(gate_math)(function, reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), count);
      },
      "for tests: a function of csrc/device/math.cuh over float32 arrays");
}

}  // namespace xlstm::python
