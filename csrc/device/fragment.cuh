// fragment.cuh - which (row, column) of a tile an element of a register fragment is: written here once, nowhere else.
// Kernels visit elements as on paper: for_each_c(lane, [&](int i, int row, int column) { d[i] ... }).
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

struct Coordinate {
  int row, column;
};

// What a lane's part of every fragment is made of. A lane's number converts to it; kernels that are short of registers make it
// once.
struct FragmentLane {
  int group, quad;  // group: a row of a and c, a column of b; quad: a pair of columns of a and c, of rows of b
  XLSTM_DEVICE FragmentLane(int lane) : group(lane / 4), quad(lane % 4) {}
};

// m16n8 accumulator (float32), elements 0..3 (PTX ISA 9.7.14.5.8)
XLSTM_DEVICE Coordinate c_coordinate(FragmentLane lane, int i) { return {lane.group + 8 * (i / 2), lane.quad * 2 + i % 2}; }
// m16n8k16 operand a, 16 x 16, elements 0..7, two to a register
XLSTM_DEVICE Coordinate a_coordinate(FragmentLane lane, int i) {
  return {lane.group + 8 * (i / 2 % 2), lane.quad * 2 + i % 2 + 8 * (i / 4)};
}
// m16n8k16 operand b, 16 (k) x 8 (n), elements 0..3, two to a register
XLSTM_DEVICE Coordinate b_coordinate(FragmentLane lane, int i) { return {lane.quad * 2 + i % 2 + 8 * (i / 2), lane.group}; }
// m16n8k8 .tf32 operands: a 16 x 8, elements 0..3; b 8 (k) x 8 (n), elements 0..1
XLSTM_DEVICE Coordinate a_tf32_coordinate(FragmentLane lane, int i) {
  return {lane.group + 8 * (i % 2), lane.quad + 4 * (i / 2)};
}
XLSTM_DEVICE Coordinate b_tf32_coordinate(FragmentLane lane, int i) { return {lane.quad + 4 * i, lane.group}; }

// The lane that holds an element of rows 0..7 of an accumulator.
constexpr int kLanesPerRow = 4;
XLSTM_DEVICE int c_lane(int row, int column) { return row * kLanesPerRow + column / 2; }
// The sum over the four lanes that share a row of an accumulator, in each of them.
XLSTM_DEVICE float sum_of_row(float x XLSTM_SITE) {
  x += __shfl_xor_sync(kAllLanes, x, 1, 32 XLSTM_FORWARD_SITE);
  return x + __shfl_xor_sync(kAllLanes, x, 2, 32 XLSTM_FORWARD_SITE);
}

// visit(element, row, column) for the elements of a 16 x 8 accumulator that this lane holds.
template <class Visit>
XLSTM_DEVICE void for_each_c(FragmentLane lane, Visit&& visit) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Coordinate at = c_coordinate(lane, i);
    visit(i, at.row, at.column);
  }
}

// The addresses that lanes hand to ldmatrix. Operand a of m16n8k16 from a row-major 16 x 16 tile: ldmatrix_x4.
XLSTM_DEVICE Coordinate a_ldmatrix_row(int lane) { return {lane % 16, lane / 16 * 8}; }
// Two operands b (n 0-7 and n 8-15) from a tile that stores b transposed, 16 (n) x 16 (k): ldmatrix_x4; registers {0,1}, {2,3}.
XLSTM_DEVICE Coordinate b_ldmatrix_row(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8}; }
// Two operands b, k 0-15 and k 16-31 of the same n, from a tile that stores b transposed, 8 (n) x 32 (k): ldmatrix_x4; likewise.
XLSTM_DEVICE Coordinate b_ldmatrix_k32_row(int lane) { return {lane % 8, lane / 8 * 8}; }
// Two operands b from a row-major 16 (k) x 16 (n) tile: ldmatrix_x4<kTransposed>; registers {0,1}, {2,3}.
XLSTM_DEVICE Coordinate b_ldmatrix_trans_row(int lane) { return {lane % 16, lane / 16 * 8}; }

}  // namespace xlstm::device
