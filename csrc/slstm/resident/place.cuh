// resident/place.cuh - what a block and a thread of a resident kernel own, and how its blocks are launched.
//
// Block: one head and kTileRows rows. Thread: UNITS neighbouring units of two rows, all four gates of them.
#pragma once
#include <string>

#include "common/dispatch.h"
#include "device/fragment.cuh"
#include "device/launch.cuh"
#include "slstm/sequence_rows.cuh"

namespace xlstm::slstm {

template <int UNITS>
struct ResidentPlace {
  int tid, lane, warp;
  int NH, DH, head, H;  // H = NH DH: from step to step of h
  int64_t first_row;
  int steps;       // of the longest row of the block
  int pair, unit;  // the thread's cells: units unit .. unit + UNITS - 1 of rows pair, pair + 1 of the block
  bool real_unit;

  XLSTM_DEVICE explicit ResidentPlace(const Shape& shape)
      : tid(int(threadIdx.x)),
        lane(tid % 32),
        warp(int(device::warp_id())),
        NH(int(shape.NH)),
        DH(int(shape.DH)),
        head(int(blockIdx.x) % NH),
        H(NH * DH),
        first_row(int64_t(blockIdx.x) / NH * kTileRows),
        steps(longest(shape, first_row, kTileRows)),
        pair(device::c_coordinate(lane, 0).column),
        unit(UNITS * (8 * warp + device::c_coordinate(lane, 0).row)),
        real_unit(unit < DH) {}

  XLSTM_DEVICE int64_t row(int e) const { return first_row + pair + e; }
  XLSTM_DEVICE int64_t state_at(int e) const { return (row(e) * NH + head) * DH + unit; }  // in (B, NH, DH)
};

template <class Tile, class Params>
void launch_resident(const std::string& name, void (*kernel)(Params), const Params& p, Stream stream) {
  device::LaunchConfig config;
  config.grid = dim3(tiles_of_rows(p.shape));
  config.block = dim3(Tile::THREADS);
  config.shared_bytes = sizeof(typename Tile::Shared);
  config.stream = stream.handle;
  config.device = stream.device;
  device::launch(config, name.c_str(), kernel, p);
}

// visit(Type<Tile>) with the first tile of the list that holds a head of this size.
template <class Tile, class... Larger, class Visit>
void with_tile(int64_t DH, Visit&& visit) {
  if (DH >= 8 && DH % 8 == 0 && DH <= Tile::DH) return visit(Type<Tile>{});
  if constexpr (sizeof...(Larger) > 0)
    return with_tile<Larger...>(DH, visit);
  else
    throw std::invalid_argument("slstm resident kernel: DH: got " + std::to_string(DH) + ", expected a multiple of 8 up to " +
                                std::to_string(Tile::DH));
}

}  // namespace xlstm::slstm
