// mlstm_state.h - C and n from one chunk border to the next, which both the forward and the backward pass do. Included only by
// files that are compiled once per instruction set.
#pragma once
#include "cpu/mlstm_gates.h"
#include "cpu/mlstm_rows.h"
#include "cpu/tile.h"

namespace xlstm::cpu {
namespace {

// C (DK, DV) and n (DK) in whole vectors; null for a fresh state.
template <typename Real>
struct State {
  Real *C = nullptr, *n = nullptr;
  explicit operator bool() const { return C != nullptr; }
};

template <typename Real>
State<Real> take_state(Scratch& scratch, const Head<Real>& head) {
  return {scratch.take<Real>(head.DK * head.DV), scratch.take<Real>(head.DK)};
}
template <typename Real>
void read_state(const MlstmInputs<Real>& p, const Head<Real>& head, const Real* C, const Real* n, const State<Real>& to) {
  pad_matrix(C ? C + head.task * p.DHQK * p.DHHV : nullptr, p.DHQK, p.DHHV, to.C, head.DK, head.DV);
  pad_matrix(n ? n + head.task * p.DHQK : nullptr, 1, p.DHQK, to.n, 1, head.DK);
}
template <typename Real>
void write_state(const MlstmInputs<Real>& p, const Head<Real>& head, const State<Real>& from, Real* C, Real* n) {
  pack_matrix(from.C, head.DV, p.DHQK, p.DHHV, C + head.task * p.DHQK * p.DHHV);
  pack_matrix(from.n, head.DK, 1, p.DHQK, n + head.task * p.DHQK);
}

// The state before a chunk, and its m, where `borders` keeps it.
template <typename Real>
State<Real> border_state(const MlstmInputs<Real>& p, const Head<Real>& head, int64_t chunk) {
  Real* const C = p.borders + (head.task * (head.chunks - 1) + chunk - 1) * border_size(p.DHQK, p.DHHV);
  return {C, C + p.DHQK * p.DHHV};
}
template <typename Real>
Real& border_m(const MlstmInputs<Real>& p, const State<Real>& state) {
  return state.n[p.DHQK];
}

// C_k = g C_{k-1} + sum_j w_j k_j v_j^T,  n_k = g n_{k-1} + sum_j w_j k_j. before may be after. wV (steps, DV) is working memory.
template <typename Real>
void advance(const Head<Real>& head, const Gates<Real>& gates, Rows<const Real> K, Rows<const Real> V, int64_t steps, Real* wV,
             const State<Real>& before, const State<Real>& after) {
  scaled(V.data, V.step, steps, head.DV, gates.w, wV);
  tiles<Real>(head.DK, head.DV, nothing, [&](auto tile, int64_t row, int64_t column) {
    tile.template product<Order::kColumns>(K.data + row, K.step, wV + column, head.DV, steps);
    if (before) {
      const Real* const C = before.C + row * head.DV + column;
      tile.each([&](int y, int v, Vector<Real>& sum) { sum += gates.g * load(C + y * head.DV + v * kLanes<Real>); });
    }
    tile.write(after.C + row * head.DV + column, head.DV);
  });
  row_product(gates.w, K.data, K.step, steps, head.DK, gates.g, before.n, after.n);
}

}  // namespace
}  // namespace xlstm::cpu
