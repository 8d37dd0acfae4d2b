// walk_place.cuh - what a use of the walk means at compile time, and where a block, a warp and a lane stand in it: sequence,
// head, columns, the addresses a lane hands to ldmatrix.
#pragma once
#include "device/matrix.cuh"
#include "mlstm/sequences.cuh"
#include "mlstm/walk_tile.cuh"

namespace xlstm::mlstm {

template <class Element_, class Tile_, WalkUse USE>
struct WalkTraits {
  using Element = Element_;
  using T = Tile_;
  using R = Record<T::L>;
  using Shared = WalkShared<T>;
  static constexpr bool REVERSE = USE == WalkUse::DK || USE == WalkUse::DV, NORMALISES = USE == WalkUse::H;
  static constexpr bool DELTA = USE == WalkUse::DQ || USE == WalkUse::DK,
                        TRANSPOSED = DELTA;  // S is the transpose of the state in memory
  // which part of the record belongs to the rows and columns of P as this walk sees it
  static constexpr int kRowHigh = REVERSE ? R::kColumnHigh : R::kRowHigh, kRowLow = REVERSE ? R::kColumnLow : R::kRowLow;
  static constexpr int kColumnHigh = REVERSE ? R::kRowHigh : R::kColumnHigh, kColumnLow = REVERSE ? R::kRowLow : R::kColumnLow;
  static constexpr int kReads = REVERSE ? R::kW : R::kU, kWrites = REVERSE ? R::kU : R::kW;
};

// One chunk in shared memory.
struct StagedChunk {
  int k;                // which chunk of the sequence
  int a, b, x;          // byte offsets of the tiles of A, B, X
  const float* record;  // records.h
  float g;
};

template <class W>
struct WalkPlace {
  using T = typename W::T;
  using Element = typename W::Element;

  const WalkParams& p;
  unsigned char* const smem;
  int lane, warp, group, quad;  // group: row of a fragment, quad: pair of columns
  int wo, wc;                   // of the warp in WO x WC
  int o_block, segment, segments;
  int64_t row, head;  // row of (N, NH)
  Span span;
  int o_warp;                          // first column of O of this warp
  int a_lane, b_lane, x_lane, p_lane;  // this lane's part of the addresses it hands to ldmatrix

  XLSTM_DEVICE WalkPlace(const WalkParams& params, bool all_segments)
      : p(params), smem(device::dynamic_shared<unsigned char>()), segments(all_segments ? params.segments : 1) {
    lane = int(threadIdx.x % 32), warp = int(device::warp_id()), group = lane / 4, quad = lane % 4;
    wo = warp % T::WO, wc = warp / T::WO;
    const int o_blocks = (p.o + T::BO - 1) / T::BO;
    o_block = int(blockIdx.x % o_blocks), segment = int(blockIdx.x / o_blocks % segments);
    row = blockIdx.x / (int64_t(o_blocks) * segments), head = row % p.sequences.NH;
    span = span_of(p.sequences, row / p.sequences.NH, T::L);
    o_warp = o_block * T::BO + wo * T::MO * 16;
    a_lane = swizzled<T::C>(lane & 15, lane >> 4);  // operand a, row-major; operand b from a tile [k][n], transposed
    b_lane = T::PN == 1 ? swizzled<T::C>(lane & 7, lane >> 3) : swizzled<T::C>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
    x_lane = swizzled<T::BO>(lane & 15, (wo * T::MO * 16 >> 3) ^ (lane >> 4));
    p_lane = swizzled<T::L>(lane & 15, lane >> 4);
  }

  XLSTM_DEVICE const Element* start_of(const View<>& x) const {
    return static_cast<const Element*>(x.data) + span.batch * x.batch + span.first * x.step + head * x.head;
  }
  // Of thread 0, for the block; the first barrier of the walk publishes them.
  XLSTM_DEVICE void write_results() const {
    const int64_t line = (span.batch * p.sequences.NH + head) * p.sequences.S + span.first;  // of (B, NH, S)
    const int64_t part = o_block * p.sequences.B * p.sequences.NH * p.sequences.S;
    results() = {const_cast<Element*>(start_of(p.O)), W::DELTA ? start_of(p.row_dot_with) : nullptr,
                 W::NORMALISES ? p.dot + line
                 : W::DELTA    ? p.row_dots + part + line
                               : nullptr};
  }
  XLSTM_DEVICE float* row_sums() const { return reinterpret_cast<float*>(smem + WalkShared<T>::ROW_SUMS); }
  XLSTM_DEVICE WalkResults& results() const { return *reinterpret_cast<WalkResults*>(smem + WalkShared<T>::RESULTS); }
  XLSTM_DEVICE bool real(int64_t step) const { return step < span.length; }
  XLSTM_DEVICE bool multiplies(int kt) const { return T::WC == 1 || kt % T::WC == wc; }  // key tile kt of P X
};

}  // namespace xlstm::mlstm
