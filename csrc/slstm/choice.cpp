// choice.cpp - the table of choice.h.
//
// resident holds R of a head in one block: in registers with 16-bit elements, in shared memory with float32 (backward needs most:
// R 4 DH^2, dg 64 DH, slots 56 DH floats). cluster needs sm_90 and its shared memory; grid is the rest.
#include "slstm/choice.h"

#include <stdexcept>

namespace xlstm::slstm {

const std::vector<Choice>& choices() {
  static const std::vector<Choice> table = {
      {KernelKind::Resident, 128, false, 80, 99 * 1024}, {KernelKind::Cluster, 768, false, 90, 227 * 1024},
      {KernelKind::Grid, 1024, false, 80, 99 * 1024},    {KernelKind::Resident, 64, true, 80, 99 * 1024},
      {KernelKind::Resident, 96, true, 80, 200 * 1024},  {KernelKind::Grid, 512, true, 80, 99 * 1024},
      {KernelKind::Grid, 768, true, 80, 163 * 1024},     {KernelKind::Grid, 1024, true, 80, 227 * 1024},
  };
  return table;
}

KernelKind choose(int64_t DH, ElementType element, const DeviceLimits& limits) {
  for (const Choice& choice : choices())
    if (choice.float32 == (element == ElementType::Float32) && DH <= choice.max_DH &&
        limits.architecture >= choice.architecture && limits.shared_per_block >= choice.shared_per_block)
      return choice.kind;
  throw std::invalid_argument("slstm: DH: got " + std::to_string(DH) + ", expected 1 to 1024 on sm_" +
                              std::to_string(limits.architecture));
}

const char* kind_name(KernelKind kind) {
  switch (kind) {
    case KernelKind::Resident:
      return "resident";
    case KernelKind::Cluster:
      return "cluster";
    default:
      return "grid";
  }
}

KernelKind kind_of(const std::string& name) {
  for (const KernelKind kind : {KernelKind::Resident, KernelKind::Cluster, KernelKind::Grid})
    if (name == kind_name(kind)) return kind;
  throw std::invalid_argument("slstm: kernel: got '" + name + "', expected 'resident', 'cluster' or 'grid'");
}

}  // namespace xlstm::slstm
