// walk_launch.cuh - which tile a walk gets: the closed list of instantiations of walk.cuh.
//
//   L    c up to   C/BO/L/stages/threads
//   64   64        64/64/64/2/128
//   64   128       128/64/64/2/128
//   64   256       256/64/64/1/256, two row passes
//   32   256       256/64/32/2/256
//   32   512       512/32/32/1/256
// L is 64 when both head dims are at most 256, otherwise 32: the walks of a call share their records.
#pragma once
#include <stdexcept>
#include <string>

#include "mlstm/walk.cuh"

namespace xlstm::mlstm {

template <class Visit>
auto with_tile(int L, int c, Visit&& visit) {
  if (L == 64) {
    if (c <= 64) return visit(Tile<64, 64, 64, 2, 128>{});
    if (c <= 128) return visit(Tile<128, 64, 64, 2, 128>{});
    return visit(Tile<256, 64, 64, 1, 256, 4, 2>{});
  }
  if (c <= 256) return visit(Tile<256, 64, 32, 2, 256>{});
  return visit(Tile<512, 32, 32, 1, 256>{});
}

template <class Element, WalkUse USE>
void launch_walk(const std::string& name, const WalkParams& p, int L, void* stream) {
  with_tile(L, p.c, [&](auto tile) {
    using T = decltype(tile);
    static_assert(WalkShared<T>::BYTES <= 99 * 1024,
                  "every tile fits the GPUs with the least shared memory: sm_86, sm_89, sm_120");
    const int64_t tiles = p.sequences.N * p.sequences.NH * ((p.o + T::BO - 1) / T::BO);
    if (tiles == 0) return;
    if (tiles * p.segments > 0x7fffffff) throw std::invalid_argument("mlstm: B * NH is more than one launch holds");
    device::LaunchConfig config;
    config.block = dim3(T::THREADS);
    config.shared_bytes = WalkShared<T>::BYTES;
    config.stream = stream;
    const int64_t slots = chunk_slots(p.sequences, L);
    if (p.segments > 1) {
      config.grid = dim3(unsigned(tiles));
      device::launch(config, (name + " states").c_str(), walk_kernel<Element, T, USE, true>, p, slots);
    }
    config.grid = dim3(unsigned(tiles * p.segments));
    device::launch(config, name.c_str(), walk_kernel<Element, T, USE, false>, p, slots);
  });
}

}  // namespace xlstm::mlstm
