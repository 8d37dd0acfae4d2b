// records.h - what the gate scan hands to the walks: one record of 9L + 4 floats per chunk and head, padded to L steps.
// Logarithms are to base 2, and pairs high + low, because they are differences of large sums when some f is about -1e4:
//   W_tj = 2^(row_t + column_j)   with   row_t = (b_t - m_t) / ln 2   and   column_j = (li_j - b_j) / ln 2
// Past the end of the sequence the logarithms are -inf and the factors 0, so that no walk masks its tail.
#pragma once

namespace xlstm::mlstm {

template <int L>
struct Record {
  static constexpr int kRowHigh = 0, kRowLow = L, kColumnHigh = 2 * L, kColumnLow = 3 * L;
  static constexpr int kR = 4 * L;      // r_t; the scale s in the forward, whose walk makes the normaliser itself
  static constexpr int kU = 5 * L;      // r_t u_t
  static constexpr int kW = 6 * L;      // w_j
  static constexpr int kDelta = 7 * L;  // delta_t; m_t in the forward
  static constexpr int kStart =
      8 * L;                        // the last reset (f = -inf) up to t in this chunk, -1 without one: W_tj = 0 for j before it
  static constexpr int kG = 9 * L;  // g, then 3 unused
  static constexpr int kFloats = 9 * L + 4;
};

}  // namespace xlstm::mlstm
