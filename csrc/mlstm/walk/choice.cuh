// choice.cuh - which tile a walk gets: the closed list of instantiations of kernel.cuh.
//
//   L    contracted up to   tile (config.h)    for
//   64   64                 Narrow64           all
//   64   128                Narrow128          all
//   64   256                Narrow256          all
//   64   128                Wide128            outputs above 64, 110 KiB of shared memory
//   64   256                Wide256OneStage    outputs above 64, 110 KiB
//   64   256                Wide256            outputs above 64, 191 KiB
//   32   256                Short256           all
//   32   512                Short512           DQ, DK, DV
//   32   512                Short512Narrow     H
// L is 64 when both head dims are at most 256, otherwise 32: the walks of a call share their records. The shared memory is what a
// block can have on the device and what code of this architecture asks for (device/kernel.cuh: most_shared_memory).
// A wide tile reads A and B, and makes P, half as often. Results have the same bits whenever the tile is the same. The state has
// the same bits in all tiles of one L, so the first states of segments come from tiles of their own, chosen by the contracted
// columns alone: those of the list's first three rows, Short256States and Short512Narrow.
#pragma once
#include <type_traits>

#include "device/kernel.cuh"
#include "mlstm/params.h"
#include "mlstm/walk/config.h"
#include "mlstm/walk/shared.cuh"

namespace xlstm::mlstm {

template <class Sizes, class Visit>
auto visit_everywhere(Visit&& visit) {
  static_assert(sizeof(WalkShared<WalkTile<Sizes>>) <= device::kSmallSharedMemory, "fits the GPUs with the least shared memory");
  return visit(WalkTile<Sizes>{});
}

template <class Visit>
auto with_narrow_tile_of_64_steps(int contracted, Visit&& visit) {
  if (contracted <= 64) return visit_everywhere<Narrow64>(visit);
  if (contracted <= 128) return visit_everywhere<Narrow128>(visit);
  return visit_everywhere<Narrow256>(visit);
}

template <WalkUse USE, class Visit>
auto with_tile(int L, int contracted, int outputs, int shared_memory, Visit&& visit) {
  const auto fits = [&](auto tile) { return int(sizeof(WalkShared<decltype(tile)>)) <= shared_memory; };
  if (L == 32) {
    if (contracted <= 256) return visit_everywhere<Short256>(visit);
    // H keeps n beside S, and with 64 columns of O that is more than there are registers.
    return visit_everywhere<std::conditional_t<USE == WalkUse::H, Short512Narrow, Short512>>(visit);
  }
  if (outputs > 64 && contracted > 64) {
    if (contracted <= 128 && fits(WalkTile<Wide128>{})) return visit(WalkTile<Wide128>{});
    if (contracted > 128 && fits(WalkTile<Wide256>{})) return visit(WalkTile<Wide256>{});
    if (contracted > 128 && fits(WalkTile<Wide256OneStage>{})) return visit(WalkTile<Wide256OneStage>{});
  }
  return with_narrow_tile_of_64_steps(contracted, visit);
}

template <class Visit>
auto with_tile_of_first_states(int L, int contracted, Visit&& visit) {
  if (L == 64) return with_narrow_tile_of_64_steps(contracted, visit);
  if (contracted <= 256) return visit_everywhere<Short256States>(visit);
  return visit_everywhere<Short512Narrow>(visit);
}

}  // namespace xlstm::mlstm
