// kernels.cpp - the launchers of the kernels (mlstm/params.h, slstm/kernels.h) and what has to be asked of them before.
#include <pybind11/stl.h>

#include <array>

#include "python/bind.h"
#include "python/reader.h"
#include "slstm/choice.h"
#ifdef XLSTM_SELFTEST
#include "simt/selftest/bind.h"
#endif

namespace xlstm::python {
namespace {

template <class Params>
int64_t grid_workspace(const std::array<int64_t, 4>& sizes, ElementType element, const slstm::DeviceLimits& limits) {
  Params p{};
  p.element = element;
  p.shape.B = sizes[0], p.shape.S = sizes[1], p.shape.NH = sizes[2], p.shape.DH = sizes[3];
  return p.shape.B == 0 ? 0 : slstm::grid_workspace_bytes(p, limits);
}

std::string dtypes_of(int element_bytes) {
  std::string names;
  for (const auto& [name, element] : kSpellings<ElementType>)
    if (slstm::bytes_of(element) == element_bytes) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

void bind_mlstm(py::module_& m) {
  bind(m, "mlstm_step", &mlstm::step);
  bind(m, "mlstm_gates", &mlstm::gate_scan);
  bind(m, "mlstm_walk", &mlstm::walk);
  bind(m, "mlstm_row_dots", &mlstm::row_dots);
  bind(m, "mlstm_state_dots", &mlstm::state_dots);
  bind(m, "mlstm_gate_gradients", &mlstm::gate_gradients);
  m.def("mlstm_chunk_length",
        [](py::str dtype, int DHQK, int DHHV) { return mlstm::chunk_length(spelled<ElementType>("dtype", dtype), DHQK, DHHV); });
  m.def("mlstm_block_columns", [](py::str use, py::str dtype, int L, int c, int o) {
    return mlstm::block_columns(spelled<mlstm::WalkUse>("use", use), spelled<ElementType>("dtype", dtype), L, c, o);
  });
}

void bind_slstm(py::module_& m) {
  bind(m, "slstm_forward", &slstm::forward);
  bind(m, "slstm_backward", &slstm::backward);
  m.attr("SLSTM_TILE_ROWS") = slstm::kTileRows;
  // bytes for sizes B (rows of cu_seqlens), S, NH, DH on so many processors (0: all); they need no values
  m.def("slstm_grid_workspace", [](bool backward, const std::array<int64_t, 4>& sizes, py::str dtype, int processors) {
    const auto bytes = backward ? &grid_workspace<slstm::KernelBackward> : &grid_workspace<slstm::KernelForward>;
    return bytes(sizes, spelled<ElementType>("dtype", dtype), slstm::limits_with(processors));
  });
  m.def("slstm_kernel", [](py::str dtype, int64_t DH) {
    return slstm::kind_name(slstm::choose(DH, spelled<ElementType>("dtype", dtype), slstm::current_device()));
  });
  // (kernel, dtypes, head dims up to, sm_ at least, bytes of shared memory at least) ...
  m.def("slstm_kernel_table", [] {
    py::list lines;
    for (const slstm::Choice& choice : slstm::choices())
      lines.append(py::make_tuple(slstm::kind_name(choice.kind), dtypes_of(choice.element_bytes), choice.max_DH,
                                  choice.architecture, choice.shared_per_block));
    return lines;
  });
}

}  // namespace

void bind_kernels(py::module_& m) {
  bind_mlstm(m);
  bind_slstm(m);
#ifdef XLSTM_SELFTEST
  selftest::bind(m);
#endif
}

}  // namespace xlstm::python
