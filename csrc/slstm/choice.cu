// choice.cu - the table of choice.h. No kernel here, but CUDA or the executor to ask for the device.
//
// resident holds R of a head in one block: in registers with 16-bit elements, in shared memory with float32 (backward needs most:
// R 4 DH^2, dg 64 DH, slots 56 DH floats). cluster needs sm_90, its shared memory and a device that holds clusters of the size
// (not every one with sm_90 or above does: fewer processors side by side, a slice of a GPU); grid is the rest.
#include "slstm/choice.h"

#include <algorithm>
#include <stdexcept>

#include "common/dispatch.h"
#include "device/limits.cuh"
#include "slstm/cell.cuh"

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

int bytes_of(ElementType element) {
  return with_element(element, [](auto type) { return int(sizeof(typename decltype(type)::type)); });
}

const std::vector<Choice>& choices() {
  static const std::vector<Choice> table = {
      {KernelKind::Resident, 128, 2, 80, 99 * 1024}, {KernelKind::Cluster, 768, 2, 90, 227 * 1024},
      {KernelKind::Grid, 1024, 2, 80, 99 * 1024},    {KernelKind::Resident, 64, 4, 80, 99 * 1024},
      {KernelKind::Resident, 96, 4, 80, 200 * 1024}, {KernelKind::Grid, 512, 4, 80, 99 * 1024},
      {KernelKind::Grid, 768, 4, 80, 163 * 1024},    {KernelKind::Grid, 1024, 4, 80, 227 * 1024},
  };
  return table;
}

KernelKind choose(int64_t DH, ElementType element, const DeviceLimits& limits) {
  const int bytes = bytes_of(element);
  int largest = 0;
  for (const Choice& choice : choices()) {
    if (choice.element_bytes != bytes || limits.architecture < choice.architecture ||
        limits.shared_per_block < choice.shared_per_block)
      continue;
    if (DH <= choice.max_DH && (choice.kind != KernelKind::Cluster || clusters_fit(DH, element, limits))) return choice.kind;
    largest = std::max(largest, choice.max_DH);
  }
  throw std::invalid_argument("slstm: DH: got " + std::to_string(DH) + ", expected 1 to " + std::to_string(largest) + " in " +
                              (bytes == 4 ? "float32" : std::to_string(8 * bytes) + " bits") + " on sm_" +
                              std::to_string(limits.architecture) + " with " + std::to_string(limits.shared_per_block / 1024) +
                              " KB of shared memory per block");
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

DeviceLimits current_device() {
  const device::Limits limits = device::current_limits();
  return {limits.architecture, limits.processors, limits.shared_per_block};
}

DeviceLimits limits_with(int processors) {
  DeviceLimits limits = current_device();
  if (processors > 0) limits.processors = processors;
  return limits;
}

namespace {

// Whether there is anything to launch.
bool checked(const Shape& shape) {
  if (shape.DH % 8) throw std::invalid_argument("slstm: DH: got " + std::to_string(shape.DH) + ", expected a multiple of 8");
  check_forget_gate(shape.forget_gate);
  return shape.B > 0;
}

template <class Params>
void launch(const Params& p, Stream stream) {
  if (!checked(p.shape)) return;
  switch (p.kernel) {
    case KernelKind::Resident:
      return resident_pass(p, stream);
    case KernelKind::Cluster:
      return cluster_pass(p, current_device(), stream);
    case KernelKind::Grid:
      return grid_pass(p, limits_with(p.processors), stream);
    case KernelKind::Step:
      if constexpr (std::is_same_v<Params, KernelForward>) return step(p, stream);
      throw std::invalid_argument("slstm: kernel step: has no backward");
  }
  throw std::invalid_argument("slstm: kernel " + std::to_string(int(p.kernel)));
}

}  // namespace

void forward(const KernelForward& p, Stream stream) { launch(p, stream); }

void backward(const KernelBackward& p, Stream stream) { launch(p, stream); }

}  // namespace xlstm::slstm
