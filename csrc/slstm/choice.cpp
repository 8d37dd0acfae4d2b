// choice.cpp - the table of choice.h.
//
// resident holds R of a head in one block: in registers with 16-bit elements, in shared memory with float32 (backward needs most:
// R 4 DH^2, dg 64 DH, slots 56 DH floats). cluster needs sm_90, its shared memory and a device that holds clusters of the size
// (not every one with sm_90 or above does: fewer processors side by side, a slice of a GPU); grid is the rest.
#include "slstm/choice.h"

#include <algorithm>
#include <stdexcept>

namespace xlstm::slstm {
namespace {

bool clusters_fit(int64_t DH, ElementType element, const DeviceLimits& limits) {  // of both passes: one choice serves both
  KernelForward forward{};
  KernelBackward backward{};
  forward.shape.DH = backward.shape.DH = DH;
  forward.element = backward.element = element;
  return cluster_fits(forward, limits) && cluster_fits(backward, limits);
}

}  // namespace

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
  const bool float32 = element == ElementType::Float32;
  int largest = 0;
  for (const Choice& choice : choices()) {
    if (choice.float32 != float32 || limits.architecture < choice.architecture ||
        limits.shared_per_block < choice.shared_per_block)
      continue;
    if (DH <= choice.max_DH && (choice.kind != KernelKind::Cluster || clusters_fit(DH, element, limits))) return choice.kind;
    largest = std::max(largest, choice.max_DH);
  }
  throw std::invalid_argument("slstm: DH: got " + std::to_string(DH) + ", expected 1 to " + std::to_string(largest) + " in " +
                              (float32 ? "float32" : "16 bits") + " on sm_" + std::to_string(limits.architecture) + " with " +
                              std::to_string(limits.shared_per_block / 1024) + " KB of shared memory per block");
}

const char* kind_name(KernelKind kind) {
  switch (kind) {
    case KernelKind::Resident:
      return "resident";
    case KernelKind::Cluster:
      return "cluster";
    case KernelKind::Grid:
      return "grid";
    case KernelKind::Step:
      return "step";
  }
  throw std::invalid_argument("slstm: kernel " + std::to_string(int(kind)));
}

DeviceLimits limits_with(int processors) {
  DeviceLimits limits = current_device();
  if (processors > 0) limits.processors = processors;
  return limits;
}

namespace {
void check_padded(int64_t DH) {
  if (DH % 8) throw std::invalid_argument("slstm: DH: got " + std::to_string(DH) + ", expected a multiple of 8");
}
}  // namespace

void forward(const KernelForward& p, Stream stream) {
  check_padded(p.shape.DH);
  if (p.shape.B == 0) return;
  switch (p.kernel) {
    case KernelKind::Resident:
      return resident_forward(p, stream);
    case KernelKind::Cluster:
      return cluster_forward(p, current_device(), stream);
    case KernelKind::Grid:
      return grid_forward(p, limits_with(p.processors), stream);
    case KernelKind::Step:
      return step(p, stream);
  }
  throw std::invalid_argument("slstm: kernel " + std::to_string(int(p.kernel)));
}

void backward(const KernelBackward& p, Stream stream) {
  check_padded(p.shape.DH);
  if (p.shape.B == 0) return;
  switch (p.kernel) {
    case KernelKind::Resident:
      return resident_backward(p, stream);
    case KernelKind::Cluster:
      return cluster_backward(p, current_device(), stream);
    case KernelKind::Grid:
      return grid_backward(p, limits_with(p.processors), stream);
    case KernelKind::Step:
      break;
  }
  throw std::invalid_argument("slstm: kernel " + std::string(kind_name(p.kernel)) + ": has no backward");
}

}  // namespace xlstm::slstm
