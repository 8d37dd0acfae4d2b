// walk_launch.cuh - which tile a walk gets, by its use, its operands' columns c, its result's columns o and the shared memory
// that a block can have on the device in code of the architecture that this is (device/kernel.cuh: most_shared_memory): the closed list of instantiations of walk.cuh.
//
//   L    c up to   C/BO/L/stages/threads   row passes   for
//   64   64        64/64/64/2/128          1            all
//   64   128       128/64/64/2/128         1            all
//   64   256       256/64/64/1/256         2            all
//   64   128       128/128/64/2/128        2            o above 64, 110 KiB of shared memory
//   64   256       256/128/64/1/256        2            o above 64, 110 KiB
//   64   256       256/128/64/2/256        2            o above 64, 191 KiB
//   32   256       256/128/32/2/256        2            all
//   32   512       512/64/32/1/256         1            DQ, DK, DV
//   32   512       512/32/32/1/256         1            H
// L is 64 when both head dims are at most 256, otherwise 32: the walks of a call share their records. A wide tile reads A and B,
// and makes P, half as often. Results have the same bits whenever the tile is the same. The state has the same bits in all tiles
// of one L, so the first states of segments come from tiles of their own, chosen by c alone: those of the list's first three
// rows, 256/64/32/2/256 and 512/32/32/1/256.
#pragma once
#include <stdexcept>
#include <string>

#include "mlstm/any_kernel.h"
#include "mlstm/walk.cuh"

namespace xlstm::mlstm {

using Wide128 = Tile<128, 128, 64, 2, 128, 4, 2>;
using Wide256 = Tile<256, 128, 64, 2, 256, 4, 2>;
struct Wide256OneStage : Tile<256, 128, 64, 1, 256, 4, 2> {
  static constexpr int kBetterTileFrom = WalkShared<Wide256>::BYTES;
};

template <class T, class Visit>
auto visit_everywhere(Visit&& visit) {
  static_assert(WalkShared<T>::BYTES <= 99 * 1024, "fits the GPUs with the least shared memory: sm_86, sm_89, sm_120");
  return visit(T{});
}

template <class Visit>
auto with_narrow_tile_of_64_steps(int c, Visit&& visit) {
  if (c <= 64) return visit_everywhere<Tile<64, 64, 64, 2, 128>>(visit);
  if (c <= 128) return visit_everywhere<Tile<128, 64, 64, 2, 128>>(visit);
  return visit_everywhere<Tile<256, 64, 64, 1, 256, 4, 2>>(visit);
}

template <WalkUse USE, class Visit>
auto with_tile(int L, int c, int o, int shared_memory, Visit&& visit) {
  if (L == 32) {
    if (c <= 256) return visit_everywhere<Tile<256, 128, 32, 2, 256, 4, 2>>(visit);
    // H keeps n beside S, and with 64 columns of O that is more than there are registers.
    return visit_everywhere<Tile<512, USE == WalkUse::H ? 32 : 64, 32, 1, 256>>(visit);
  }
  if (o > 64 && c > 64) {
    if (c <= 128 && WalkShared<Wide128>::BYTES <= shared_memory) return visit(Wide128{});
    if (c > 128 && WalkShared<Wide256>::BYTES <= shared_memory) return visit(Wide256{});
    if (c > 128 && WalkShared<Wide256OneStage>::BYTES <= shared_memory) return visit(Wide256OneStage{});
  }
  return with_narrow_tile_of_64_steps(c, visit);
}

template <class Visit>
auto with_tile_of_first_states(int L, int c, Visit&& visit) {
  if (L == 64) return with_narrow_tile_of_64_steps(c, visit);
  if (c <= 256) return visit_everywhere<Tile<256, 64, 32, 2, 256>>(visit);
  return visit_everywhere<Tile<512, 32, 32, 1, 256>>(visit);
}

template <class Element, class T, WalkUse USE, bool STATES_ONLY>
void launch_walk_kernel(const std::string& name, const WalkParams& p, int L, Stream stream) {
  const int64_t blocks = p.sequences.N * p.sequences.NH * ((p.o + T::BO - 1) / T::BO) * (STATES_ONLY ? 1 : p.segments);
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::invalid_argument("mlstm: B * NH is more than one launch holds");
  device::LaunchConfig config;
  config.grid = dim3(unsigned(blocks));
  config.block = dim3(T::THREADS);
  config.shared_bytes = WalkShared<T>::BYTES;
  config.stream = stream.handle;
  config.device = stream.device;
  device::launch(config, name.c_str(), walk_kernel<Element, T, USE, STATES_ONLY>, p, chunk_slots(p.sequences, L));
}

template <class Element, WalkUse USE>
void launch_walk(const std::string& name, const WalkParams& p, int L, Stream stream) {
  if (p.segments > 1)
    with_tile_of_first_states(
        L, p.c, [&](auto tile) { launch_walk_kernel<Element, decltype(tile), USE, true>(name + " states", p, L, stream); });
  with_tile<USE>(L, p.c, p.o, device::shared_memory_limit_of_code(any_kernel()),
                 [&](auto tile) { launch_walk_kernel<Element, decltype(tile), USE, false>(name, p, L, stream); });
}

}  // namespace xlstm::mlstm
