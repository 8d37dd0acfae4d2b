// walk_float32.cu - the four walks in float32; equations and mapping: walk_float32.cuh.
#include <stdexcept>
#include <string>

#include "mlstm/walk_float32.cuh"
#include "mlstm/walks.h"

namespace xlstm::mlstm {
namespace {

template <WalkUse USE>
void launch(const std::string& name, const WalkParams& p, Stream stream) {
  const int64_t tiles = p.sequences.N * p.sequences.NH * ((p.o + Float32Tile::BO - 1) / Float32Tile::BO);
  if (tiles == 0) return;
  if (tiles * p.segments > 0x7fffffff) throw std::invalid_argument("mlstm: B * NH is more than one launch holds");
  device::LaunchConfig config;
  config.block = dim3(Float32Tile::THREADS);
  config.shared_bytes = Float32Shared::bytes(p.c);
  config.stream = stream.handle;
  config.device = stream.device;
  const int64_t slots = chunk_slots(p.sequences, Float32Tile::L);
  if (p.segments > 1) {
    config.grid = dim3(unsigned(tiles));
    device::launch(config, (name + " states").c_str(), walk_float32_kernel<USE, true>, p, slots);
  }
  config.grid = dim3(unsigned(tiles * p.segments));
  device::launch(config, name.c_str(), walk_float32_kernel<USE, false>, p, slots);
}

}  // namespace

void walk_float32(const WalkParams& params, Stream stream) {
  switch (params.use) {
    case WalkUse::H:
      return launch<WalkUse::H>("mlstm_walk_h<float32>", params, stream);
    case WalkUse::DQ:
      return launch<WalkUse::DQ>("mlstm_walk_dq<float32>", params, stream);
    case WalkUse::DK:
      return launch<WalkUse::DK>("mlstm_walk_dk<float32>", params, stream);
    case WalkUse::DV:
      return launch<WalkUse::DV>("mlstm_walk_dv<float32>", params, stream);
  }
}

}  // namespace xlstm::mlstm
