// build.cpp - what every compiled module says of itself.
#include "build_config.h"
#include "python/bind.h"
#include "python/reader.h"

namespace xlstm::python {
namespace {

template <class... P>
uint64_t hash_of_fields() {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, because std::hash differs between libraries
  const auto add = [&](const Names& names) {
    for (const py::handle name : names)
      for (const char c : name.cast<std::string>() + ";") hash = (hash ^ uint8_t(c)) * 0x100000001b3u;
  };
  (add(names_of<P>()), ...);
  return hash;
}

}  // namespace

void bind_build(py::module_& m) {
  m.attr("version") = XLSTM_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("fields") = hash_of_fields<mlstm::Options, mlstm::Sequences, mlstm::StepParams, mlstm::GateScanParams, mlstm::WalkParams,
                                    mlstm::RowDotParams, mlstm::StateDotParams, mlstm::GateGradientParams, slstm::Shape,
                                    slstm::KernelForward, slstm::KernelBackward>();
}

}  // namespace xlstm::python
