// bind.cpp - the sLSTM kernels for Python: tensors as addresses, strides in elements (kernels.h), and the table of choice.h.
#include "slstm/bind.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "slstm/choice.h"
#include "slstm/kernels.h"

namespace py = pybind11;

namespace xlstm::slstm {
namespace {

using Address = std::uintptr_t;        // tensor.data_ptr(), 0 for none
using Sizes = std::array<int64_t, 4>;  // B (rows of cu_seqlens), S, NH, DH

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

Shape shape_of(const Sizes& sizes, Address cu_seqlens, Address reset, std::array<int64_t, 2> reset_strides,
               const std::string& forget_gate) {
  Shape shape{};
  shape.B = sizes[0], shape.S = sizes[1], shape.NH = sizes[2], shape.DH = sizes[3];
  shape.cu_seqlens = pointer<const int32_t>(cu_seqlens), shape.reset = pointer<const uint8_t>(reset);
  shape.reset_stride_b = reset_strides[0], shape.reset_stride_s = reset_strides[1];
  shape.forget_gate = forget_gate == "exp" ? ForgetGate::kExp : ForgetGate::kSigmoid;
  if (shape.DH % 8) throw std::invalid_argument("slstm: DH: got " + std::to_string(shape.DH) + ", expected a multiple of 8");
  return shape;
}

// processors: the grid kernel counts on no more of them; 0: all of the device's.
DeviceLimits limits_with(int processors) {
  DeviceLimits limits = current_device();
  if (processors > 0) limits.processors = processors;
  return limits;
}

int64_t grid_workspace(bool backward, const Sizes& sizes, const std::string& dtype, int processors) {
  const Shape shape = shape_of(sizes, 0, 0, {0, 0}, "sigmoid");
  if (shape.B == 0) return 0;
  if (backward) {
    KernelBackward p{};
    p.shape = shape, p.element = element_type(dtype);
    return grid_workspace_bytes(p, limits_with(processors));
  }
  KernelForward p{};
  p.shape = shape, p.element = element_type(dtype);
  return grid_workspace_bytes(p, limits_with(processors));
}

void forward(const std::string& kernel, Sizes sizes, Address cu_seqlens, Address reset, std::array<int64_t, 2> reset_strides,
             const std::string& forget_gate, const std::string& dtype, Address x, std::array<int64_t, 4> x_strides, Address R,
             Address b, Address h0, Address c0, Address n0, Address m0, Address h, Address h_last, Address c_last, Address n_last,
             Address m_last, Address saved_tails, Address saved_cells, Address workspace, int processors, Address stream) {
  KernelForward p{};
  p.shape = shape_of(sizes, cu_seqlens, reset, reset_strides, forget_gate), p.element = element_type(dtype);
  p.x = pointer(x), p.R = pointer(R), p.b = pointer<float>(b);
  p.x_stride_b = x_strides[0], p.x_stride_s = x_strides[1], p.x_stride_g = x_strides[2], p.x_stride_n = x_strides[3];
  p.h0 = pointer<float>(h0), p.c0 = pointer<float>(c0), p.n0 = pointer<float>(n0), p.m0 = pointer<float>(m0), p.h = pointer(h);
  p.h_last = pointer<float>(h_last), p.c_last = pointer<float>(c_last), p.n_last = pointer<float>(n_last),
  p.m_last = pointer<float>(m_last);
  p.saved_tails = pointer(saved_tails), p.saved_cells = pointer<float>(saved_cells);
  p.workspace = pointer(workspace);
  if (p.shape.B == 0) return;
  const py::gil_scoped_release release;
  if (kernel == "step") return step(p, pointer(stream));
  switch (kind_of(kernel)) {
    case KernelKind::Resident:
      return resident_forward(p, pointer(stream));
    case KernelKind::Cluster:
      return cluster_forward(p, current_device(), pointer(stream));
    case KernelKind::Grid:
      return grid_forward(p, limits_with(processors), pointer(stream));
  }
}

void backward(const std::string& kernel, Sizes sizes, Address cu_seqlens, Address reset, std::array<int64_t, 2> reset_strides,
              const std::string& forget_gate, const std::string& dtype, Address R, Address h0, Address c0, Address n0,
              Address saved_tails, Address saved_cells, Address dh, std::array<int64_t, 3> dh_strides, Address dh_last,
              Address dc_last, Address dn_last, Address dx, Address db_parts, Address dh0, Address dc0, Address dn0, Address dm0,
              Address workspace, int processors, Address stream) {
  KernelBackward p{};
  p.shape = shape_of(sizes, cu_seqlens, reset, reset_strides, forget_gate), p.element = element_type(dtype);
  p.R = pointer(R), p.h0 = pointer<float>(h0), p.c0 = pointer<float>(c0), p.n0 = pointer<float>(n0);
  p.saved_tails = pointer(saved_tails), p.saved_cells = pointer<float>(saved_cells), p.dh = pointer(dh);
  p.dh_stride_b = dh_strides[0], p.dh_stride_s = dh_strides[1], p.dh_stride_n = dh_strides[2];
  p.dh_last = pointer<float>(dh_last), p.dc_last = pointer<float>(dc_last), p.dn_last = pointer<float>(dn_last);
  p.dx = pointer(dx), p.db_parts = pointer<float>(db_parts);
  p.dh0 = pointer<float>(dh0), p.dc0 = pointer<float>(dc0), p.dn0 = pointer<float>(dn0), p.dm0 = pointer<float>(dm0);
  p.workspace = pointer(workspace);
  if (p.shape.B == 0) return;
  const py::gil_scoped_release release;
  switch (kind_of(kernel)) {
    case KernelKind::Resident:
      return resident_backward(p, pointer(stream));
    case KernelKind::Cluster:
      return cluster_backward(p, current_device(), pointer(stream));
    case KernelKind::Grid:
      return grid_backward(p, limits_with(processors), pointer(stream));
  }
}

py::list table() {
  py::list lines;
  for (const Choice& choice : choices())
    lines.append(py::make_tuple(kind_name(choice.kind), choice.float32 ? "float32" : "bfloat16, float16", choice.max_DH,
                                choice.architecture, choice.shared_per_block));
  return lines;
}

}  // namespace

void bind_slstm(py::module_& m) {
  m.def(
      "slstm_kernel",
      [](const std::string& dtype, int64_t DH) { return kind_name(choose(DH, element_type(dtype), current_device())); },
      py::arg("dtype"), py::arg("DH"), "which kernel serves this head dim on the current device");
  m.attr("SLSTM_TILE_ROWS") = kTileRows;
  m.def("slstm_kernel_table", &table, "(kernel, dtypes, head dims up to, sm_ at least, bytes of shared memory at least) ...");
  m.def("slstm_grid_workspace", &grid_workspace, py::arg("backward"), py::arg("sizes"), py::arg("dtype"),
        py::arg("processors") = 0, "bytes of the grid kernel's workspace, which need no values");
  m.def("slstm_forward", &forward, py::kw_only(), py::arg("kernel"), py::arg("sizes"), py::arg("cu_seqlens"), py::arg("reset"),
        py::arg("reset_strides"), py::arg("forget_gate"), py::arg("dtype"), py::arg("x"), py::arg("x_strides"), py::arg("R"),
        py::arg("b"), py::arg("h0"), py::arg("c0"), py::arg("n0"), py::arg("m0"), py::arg("h"), py::arg("h_last"),
        py::arg("c_last"), py::arg("n_last"), py::arg("m_last"), py::arg("saved_tails"), py::arg("saved_cells"),
        py::arg("workspace") = 0, py::arg("processors") = 0, py::arg("stream"),
        "S1-S3 over a sequence (KernelForward); kernel 'step' takes S = 1 without resets");
  m.def("slstm_backward", &backward, py::kw_only(), py::arg("kernel"), py::arg("sizes"), py::arg("cu_seqlens"), py::arg("reset"),
        py::arg("reset_strides"), py::arg("forget_gate"), py::arg("dtype"), py::arg("R"), py::arg("h0"), py::arg("c0"),
        py::arg("n0"), py::arg("saved_tails"), py::arg("saved_cells"), py::arg("dh"), py::arg("dh_strides"), py::arg("dh_last"),
        py::arg("dc_last"), py::arg("dn_last"), py::arg("dx"), py::arg("db_parts"), py::arg("dh0"), py::arg("dc0"),
        py::arg("dn0"), py::arg("dm0"), py::arg("workspace") = 0, py::arg("processors") = 0, py::arg("stream"),
        "S4, S5 over a sequence (KernelBackward)");
}

}  // namespace xlstm::slstm
