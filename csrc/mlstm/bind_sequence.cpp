// bind_sequence.cpp - the chunkwise mLSTM's launchers for Python: tensors as addresses, strides in elements (params.h).
#include "mlstm/bind_sequence.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "mlstm/params.h"

namespace py = pybind11;

namespace xlstm::mlstm {
namespace {

using Address = std::uintptr_t;
using Strides = std::array<int64_t, 3>;  // batch, step, head
using Shape = std::array<int64_t, 4>;    // B, S, N, NH

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

ElementType element_type(const std::string& name) {
  if (name == "float32") return ElementType::Float32;
  if (name == "bfloat16") return ElementType::BFloat16;
  if (name == "float16") return ElementType::Float16;
  throw py::type_error("element type: got " + name + ", expected float32, bfloat16 or float16");
}

InputGate input_gate(const std::string& name) { return name == "sigmoid" ? InputGate::Sigmoid : InputGate::Exponential; }

WalkUse walk_use(const std::string& name) {
  if (name == "h") return WalkUse::H;
  if (name == "dq") return WalkUse::DQ;
  if (name == "dk") return WalkUse::DK;
  if (name == "dv") return WalkUse::DV;
  throw py::value_error("walk: got '" + name + "', expected 'h', 'dq', 'dk' or 'dv'");
}

Sequences sequences_of(Shape s, Address cu_seqlens) { return {s[0], s[1], s[2], s[3], pointer<const int32_t>(cu_seqlens)}; }
StepStrides strides_of(Strides s) { return {s[0], s[1], s[2]}; }

void gates(Shape shape, Address cu_seqlens, int L, const std::string& gate_dtype, const std::string& igate, bool normalize,
           float scale, float eps, Address i, Address f, Strides i_strides, Strides f_strides, Address m0, Address totals,
           Address m_before, Address m_last, Address dot, Address along, Address records, Address stream) {
  GateScanParams p{};
  p.sequences = sequences_of(shape, cu_seqlens), p.L = L;
  p.gate_element = element_type(gate_dtype), p.input_gate = input_gate(igate);
  p.normalize = normalize, p.scale = scale, p.eps = eps;
  p.i = pointer(i), p.f = pointer(f), p.i_strides = strides_of(i_strides), p.f_strides = strides_of(f_strides);
  p.m0 = pointer<float>(m0), p.totals = pointer<double>(totals), p.m_before = pointer<float>(m_before),
  p.m_last = pointer<float>(m_last);
  p.dot = pointer<float>(dot), p.along = pointer<float>(along), p.records = pointer<float>(records);
  const py::gil_scoped_release release;
  gate_scan(p, pointer(stream));
}

void walk_from_python(const std::string& use, Shape shape, Address cu_seqlens, const std::string& dtype, int c, int o, Address A,
                      Address B, Address X, Address O, Strides A_strides, Strides B_strides, Strides X_strides, Strides O_strides,
                      Address records, bool normalize, float scale, float eps, Address state_start, Address vector_start,
                      Address state_end, Address vector_end, int segments, Address segment_states, Address segment_vectors,
                      Address dot, Address row_dot_with, Strides row_dot_strides, Address row_dots, Address stream) {
  WalkParams p{};
  p.sequences = sequences_of(shape, cu_seqlens), p.element = element_type(dtype), p.c = c, p.o = o;
  p.A = pointer(A), p.B = pointer(B), p.X = pointer(X), p.O = pointer(O);
  p.A_strides = strides_of(A_strides), p.B_strides = strides_of(B_strides);
  p.X_strides = strides_of(X_strides), p.O_strides = strides_of(O_strides);
  p.records = pointer<float>(records), p.normalize = normalize, p.scale = scale, p.eps = eps;
  p.state_start = pointer<float>(state_start), p.vector_start = pointer<float>(vector_start);
  p.state_end = pointer<float>(state_end), p.vector_end = pointer<float>(vector_end), p.dot = pointer<float>(dot);
  p.segments = segments, p.segment_states = pointer<float>(segment_states), p.segment_vectors = pointer<float>(segment_vectors);
  p.row_dot_with = pointer(row_dot_with), p.row_dot_strides = strides_of(row_dot_strides), p.row_dots = pointer<float>(row_dots);
  const WalkUse which = walk_use(use);
  const py::gil_scoped_release release;
  walk(which, p, pointer(stream));
}

void row_dots_from_python(int64_t B, int64_t S, int64_t NH, int D, const std::string& dtype, Address x, Address y,
                          Strides x_strides, Strides y_strides, Address out, Address stream) {
  const RowDotParams p{B,
                       S,
                       NH,
                       D,
                       element_type(dtype),
                       pointer(x),
                       pointer(y),
                       strides_of(x_strides),
                       strides_of(y_strides),
                       pointer<float>(out)};
  const py::gil_scoped_release release;
  row_dots(p, pointer(stream));
}

void state_dots_from_python(int64_t rows, int64_t C_size, int64_t n_size, Address C, Address D, Address n, Address d, Address out,
                            Address stream) {
  const StateDotParams p{
      rows, C_size, n_size, pointer<float>(C), pointer<float>(D), pointer<float>(n), pointer<float>(d), pointer<float>(out)};
  const py::gil_scoped_release release;
  state_dots(p, pointer(stream));
}

void gate_gradients_from_python(Shape shape, Address cu_seqlens, int L, int parts, const std::string& gate_dtype,
                                const std::string& igate, Address q_dq, Address k_dk, Address border, Address records, Address i,
                                Address f, Strides i_strides, Strides f_strides, Address dlog_f, Address di, Address df,
                                Address stream) {
  GateGradientParams p{};
  p.sequences = sequences_of(shape, cu_seqlens), p.L = L, p.parts = parts;
  p.gate_element = element_type(gate_dtype), p.input_gate = input_gate(igate);
  p.q_dq = pointer<float>(q_dq), p.k_dk = pointer<float>(k_dk), p.border = pointer<float>(border),
  p.records = pointer<float>(records);
  p.i = pointer(i), p.f = pointer(f), p.i_strides = strides_of(i_strides), p.f_strides = strides_of(f_strides);
  p.dlog_f = pointer<float>(dlog_f), p.di = pointer(di), p.df = pointer(df);
  const py::gil_scoped_release release;
  gate_gradients(p, pointer(stream));
}

}  // namespace

void bind_sequence(py::module_& m) {
  m.def("mlstm_chunk_length",
        [](const std::string& dtype, int DHQK, int DHHV) { return chunk_length(element_type(dtype), DHQK, DHHV); });
  m.def("mlstm_block_columns", [](const std::string& use, const std::string& dtype, int L, int c, int o) {
    return block_columns(walk_use(use), element_type(dtype), L, c, o);
  });
  m.def("mlstm_gates", &gates, py::kw_only(), py::arg("shape"), py::arg("cu_seqlens"), py::arg("L"), py::arg("gate_dtype"),
        py::arg("igate"), py::arg("normalize"), py::arg("scale"), py::arg("eps"), py::arg("i"), py::arg("f"),
        py::arg("i_strides"), py::arg("f_strides"), py::arg("m0"), py::arg("totals"), py::arg("m_before"), py::arg("m_last"),
        py::arg("dot"), py::arg("along"), py::arg("records"), py::arg("stream"),
        "M4-M6: stabilisers and records of all chunks (GateScanParams)");
  m.def("mlstm_walk", &walk_from_python, py::kw_only(), py::arg("use"), py::arg("shape"), py::arg("cu_seqlens"), py::arg("dtype"),
        py::arg("c"), py::arg("o"), py::arg("A"), py::arg("B"), py::arg("X"), py::arg("O"), py::arg("A_strides"),
        py::arg("B_strides"), py::arg("X_strides"), py::arg("O_strides"), py::arg("records"), py::arg("normalize"),
        py::arg("scale"), py::arg("eps"), py::arg("state_start"), py::arg("vector_start"), py::arg("state_end"),
        py::arg("vector_end"), py::arg("segments"), py::arg("segment_states"), py::arg("segment_vectors"), py::arg("dot"),
        py::arg("row_dot_with"), py::arg("row_dot_strides"), py::arg("row_dots"), py::arg("stream"),
        "one walk: h, dq, dk or dv (WalkParams)");
  m.def("mlstm_row_dots", &row_dots_from_python, py::kw_only(), py::arg("B"), py::arg("S"), py::arg("NH"), py::arg("D"),
        py::arg("dtype"), py::arg("x"), py::arg("y"), py::arg("x_strides"), py::arg("y_strides"), py::arg("out"),
        py::arg("stream"), "x.y of every step, float32");
  m.def("mlstm_state_dots", &state_dots_from_python, py::kw_only(), py::arg("rows"), py::arg("C_size"), py::arg("n_size"),
        py::arg("C"), py::arg("D"), py::arg("n"), py::arg("d"), py::arg("out"), py::arg("stream"),
        "<C, D> + <n, d> of every row");
  m.def("mlstm_gate_gradients", &gate_gradients_from_python, py::kw_only(), py::arg("shape"), py::arg("cu_seqlens"), py::arg("L"),
        py::arg("parts"), py::arg("gate_dtype"), py::arg("igate"), py::arg("q_dq"), py::arg("k_dk"), py::arg("border"),
        py::arg("records"), py::arg("i"), py::arg("f"), py::arg("i_strides"), py::arg("f_strides"), py::arg("dlog_f"),
        py::arg("di"), py::arg("df"), py::arg("stream"), "M7: di and df (GateGradientParams)");
}

}  // namespace xlstm::mlstm
