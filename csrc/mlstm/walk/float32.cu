// float32.cu - the four walks in float32; equations and mapping: float32.cuh.
#include "mlstm/walk/float32.cuh"

#include <string>

#include "mlstm/blocks.cuh"
#include "mlstm/walk/walks.h"

namespace xlstm::mlstm {

void walk_float32(const WalkParams& p, Stream stream) {
  const int64_t columns = (p.outputs + Float32Tile::OUTPUTS - 1) / Float32Tile::OUTPUTS;
  const int64_t blocks = p.sequences.N * p.sequences.NH * columns, slots = chunk_slots(p.sequences, Float32Tile::L);
  if (blocks == 0) return;
  with_use(p.use, [&](auto constant) {
    constexpr WalkUse USE = decltype(constant)::value;
    const std::string name = std::string(kWalkName<USE>) + "<float32>";
    device::LaunchConfig config = config_of(stream, blocks, Float32Tile::THREADS, "B * NH");
    config.shared_bytes = Float32Shared::bytes(p.contracted);
    if (p.segments > 1) device::launch(config, (name + " states").c_str(), walk_float32_kernel<USE, true>, p, slots);
    config.grid = config_of(stream, blocks * p.segments, Float32Tile::THREADS, "B * NH").grid;
    device::launch(config, name.c_str(), walk_float32_kernel<USE, false>, p, slots);
  });
}

}  // namespace xlstm::mlstm
