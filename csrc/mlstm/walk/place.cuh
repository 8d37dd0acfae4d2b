// place.cuh - what a use of the walk means at compile time, and where a block, a warp and a lane stand in it: sequence, head,
// columns, the addresses a lane hands to ldmatrix.
#pragma once
#include "device/matrix.cuh"
#include "mlstm/params.h"
#include "mlstm/sequences.cuh"
#include "mlstm/walk/shared.cuh"

namespace xlstm::mlstm {

// Of one use, whatever the tile and the element type are. P_tj counts steps: t reads, j <= t writes. A walk sees P with its rows
// (those of A and O) and its columns (those of B and X): row t, column j forward, row j, column t in reverse.
template <WalkUse USE, class Fields>
struct UseTraits {
  static constexpr bool REVERSE = USE == WalkUse::DK || USE == WalkUse::DV;
  static constexpr bool NORMALISES = USE == WalkUse::H;
  static constexpr bool DELTA = USE == WalkUse::DQ || USE == WalkUse::DK;
  static constexpr bool TRANSPOSED = DELTA;  // S is the transpose of the state in memory
  // which part of the record belongs to the rows and columns of P as this walk sees it
  static constexpr int kRowHigh = REVERSE ? Fields::kColumnHigh : Fields::kRowHigh;
  static constexpr int kRowLow = REVERSE ? Fields::kColumnLow : Fields::kRowLow;
  static constexpr int kColumnHigh = REVERSE ? Fields::kRowHigh : Fields::kColumnHigh;
  static constexpr int kColumnLow = REVERSE ? Fields::kRowLow : Fields::kColumnLow;
  static constexpr int kReads = REVERSE ? Fields::kW : Fields::kU, kWrites = REVERSE ? Fields::kU : Fields::kW;
};

// What every function of a walk is a template of.
template <class Element_, class Tile_, WalkUse USE_>
struct WalkTraits : UseTraits<USE_, Record<Tile_::L>> {
  using Element = Element_;
  using Tile = Tile_;
  using Fields = Record<Tile::L>;
  using Shared = WalkShared<Tile>;
  using Sums = float[Tile::PASS_ROW_TILES][Tile::OUTPUT_TILES][4];  // of O, one pass: 16 x 8 accumulators
  using Operand = uint32_t[Tile::STATE_TILES][4];                   // X of one key tile, as operands b, 16 x 16 each
};

// One chunk in shared memory.
struct StagedChunk {
  int index;      // which chunk of the sequence
  int a, b, x;    // byte offsets of the tiles of A, B, X
  float* record;  // gates/records.h
  float g;
};

template <class Walk>
struct WalkPlace {
  using Tile = typename Walk::Tile;
  using Element = typename Walk::Element;
  using Shared = typename Walk::Shared;

  const WalkParams& p;
  unsigned char* const smem;  // a Shared, by byte offsets where ldmatrix takes them
  int lane, warp;
  device::FragmentLane fragment;
  int output_warp, contracted_warp;  // of the warp in OUTPUT_WARPS x CONTRACTED_WARPS
  int output_block, segment, segments;
  int64_t sequence_head, head;  // row of (N, NH)
  ChunkedSpan span;
  int first_output;                    // column of O of this warp
  int a_lane, b_lane, x_lane, p_lane;  // this lane's part of the addresses it hands to ldmatrix

  XLSTM_DEVICE WalkPlace(const WalkParams& params, bool all_segments)
      : p(params),
        smem(device::dynamic_shared<unsigned char>()),
        lane(int(threadIdx.x % 32)),
        warp(int(device::warp_id())),
        fragment(lane),
        segments(all_segments ? params.segments : 1) {
    output_warp = warp % Tile::OUTPUT_WARPS;
    contracted_warp = warp / Tile::OUTPUT_WARPS;
    const int output_blocks = (p.outputs + Tile::OUTPUTS - 1) / Tile::OUTPUTS;
    output_block = int(blockIdx.x % output_blocks);
    segment = int(blockIdx.x / output_blocks % segments);
    sequence_head = blockIdx.x / (int64_t(output_blocks) * segments);
    head = sequence_head % p.sequences.NH;
    span = span_of(p.sequences, sequence_head / p.sequences.NH, Tile::L);
    const int warp_outputs = output_warp * Tile::STATE_TILES * 16;
    first_output = output_block * Tile::OUTPUTS + warp_outputs;
    a_lane = swizzled<Tile::CONTRACTED>(device::a_ldmatrix_row(lane));  // also operand b from a tile [k][n], transposed
    b_lane =
        swizzled<Tile::CONTRACTED>(Tile::JOB_KEY_TILES == 1 ? device::b_ldmatrix_k32_row(lane) : device::b_ldmatrix_row(lane));
    x_lane = swizzled<Tile::OUTPUTS>(device::b_ldmatrix_trans_row(lane), warp_outputs);
    p_lane = swizzled<Tile::L>(device::a_ldmatrix_row(lane));
  }

  XLSTM_DEVICE const Element* start_of(const View<>& x) const {
    return static_cast<const Element*>(x.data) + span.batch * x.batch + span.first * x.step + head * x.head;
  }
  // Of thread 0, for the block; the first barrier of the walk publishes them.
  XLSTM_DEVICE void write_results() const {
    const int64_t line = (span.batch * p.sequences.NH + head) * p.sequences.S + span.first;  // of (B, NH, S)
    const int64_t part = output_block * p.sequences.B * p.sequences.NH * p.sequences.S;
    results() = {const_cast<Element*>(start_of(p.O)), Walk::DELTA ? start_of(p.row_dot_with) : nullptr,
                 Walk::NORMALISES ? p.dot + line
                 : Walk::DELTA    ? p.row_dots + part + line
                                  : nullptr};
  }
  XLSTM_DEVICE Shared& shared() const { return *reinterpret_cast<Shared*>(smem); }
  XLSTM_DEVICE float* row_sums() const { return shared().row_sums[0]; }
  XLSTM_DEVICE WalkResults& results() const { return shared().results; }
  XLSTM_DEVICE bool real(int64_t step) const { return step < span.length; }
  XLSTM_DEVICE bool multiplies(int key_tile) const {  // in P X
    return Tile::CONTRACTED_WARPS == 1 || key_tile % Tile::CONTRACTED_WARPS == contracted_warp;
  }

  // Where a stage of shared memory holds a chunk; g is not read yet.
  XLSTM_DEVICE StagedChunk staged(int index, int stage) const {
    return {index,
            int(offsetof(Shared, A)) + stage * int(sizeof(Shared::A[0])),
            int(offsetof(Shared, B)) + stage * int(sizeof(Shared::B[0])),
            int(offsetof(Shared, X)) + stage * int(sizeof(Shared::X[0])),
            reinterpret_cast<float*>(smem + int(offsetof(Shared, record)) + stage * int(sizeof(Shared::record[0]))),
            0.0f};
  }
  // Addresses for ldmatrix of the 16 x 16 elements from `row` and `column` on. Columns count from the first of this warp.
  XLSTM_DEVICE const void* contracted(int tile, int row, int column) const {  // tile: of A or B
    return smem + moved<Tile::CONTRACTED>(tile + a_lane + contracted_warp * Tile::WARP_CONTRACTED * 2, column) +
           row * Tile::CONTRACTED * 2;
  }
  XLSTM_DEVICE const void* x(const StagedChunk& chunk, int row, int column) const {
    return smem + moved<Tile::OUTPUTS>(chunk.x + x_lane, column) + row * Tile::OUTPUTS * 2;
  }
  XLSTM_DEVICE const void* scores(int row, int column) const {
    return smem + int(offsetof(Shared, P)) + moved<Tile::L>(p_lane, column) + row * Tile::L * 2;
  }
  // The two scores that this lane holds of a row in a key tile.
  XLSTM_DEVICE void write_score_pair(int row, int key_tile, uint32_t pair) const {
    const int column = device::c_coordinate(fragment, 0).column;
    *reinterpret_cast<uint32_t*>(smem + int(offsetof(Shared, P)) + swizzled<Tile::L>(row, key_tile) + 2 * column) = pair;
  }
};

}  // namespace xlstm::mlstm
