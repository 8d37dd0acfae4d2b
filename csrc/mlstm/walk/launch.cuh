// launch.cuh - the launches of a walk in 16 bits: the pass that makes the first states of segments, and the walk.
#pragma once
#include <string>

#include "common/dispatch.h"
#include "mlstm/blocks.cuh"
#include "mlstm/walk/choice.cuh"
#include "mlstm/walk/kernel.cuh"
#include "mlstm/walk/walks.h"

namespace xlstm::mlstm {

template <class Element, class Tile, WalkUse USE, bool STATES_ONLY>
void launch_walk(const std::string& name, const WalkParams& p, int L, Stream stream) {
  const int64_t columns = (p.outputs + Tile::OUTPUTS - 1) / Tile::OUTPUTS;
  const int64_t blocks = p.sequences.N * p.sequences.NH * columns * (STATES_ONLY ? 1 : p.segments);
  if (blocks == 0) return;
  device::LaunchConfig config = config_of(stream, blocks, Tile::THREADS, "B * NH");
  config.shared_bytes = sizeof(WalkShared<Tile>);
  device::launch(config, name.c_str(), walk_kernel<Element, Tile, USE, STATES_ONLY>, p, chunk_slots(p.sequences, L));
}

template <WalkUse USE>
void walk_16_bits(const WalkParams& p, int L, int shared_memory, Stream stream) {
  with_16_bit_element(p.element, [&](auto type) {
    using Element = typename decltype(type)::type;
    const std::string name = std::string(kWalkName<USE>) + "<" + kElementName<Element> + ">";
    if (p.segments > 1)
      with_tile_of_first_states(
          L, p.contracted, [&](auto tile) { launch_walk<Element, decltype(tile), USE, true>(name + " states", p, L, stream); });
    with_tile<USE>(L, p.contracted, p.outputs, shared_memory,
                   [&](auto tile) { launch_walk<Element, decltype(tile), USE, false>(name, p, L, stream); });
  });
}

}  // namespace xlstm::mlstm
