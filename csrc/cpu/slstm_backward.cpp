// slstm_backward.cpp - S4 over all steps of a tile, last step first, compiled once per instruction set.
//
// Per step: dy = dh + dh_rec, the cells of each row, then dh_rec = R^T dg for all rows of the tile.  dR is left to a matrix
// product over all steps (dx^T h_prev), below or the caller's; db is summed here, row by row.  Nothing that forward saved is
// written. Scratch per row, P padded units each: dg (4), db (4), dy, dh_rec, dc, dn.
#include "cpu/product.h"
#include "cpu/slstm_rows.h"
#include "cpu/tile.h"
#include "slstm/cell.cuh"

namespace xlstm::cpu {
namespace {

// packed[panel][g P + j][column]: W[g P + j][k] = R[g, head, j, k].
template <typename Real>
void pack_backward(const slstm::BackwardParams<Real, Real>& p, int64_t head, Real* packed) {
  constexpr int64_t width = kPanelBytes / sizeof(Real);
  const int64_t DH = p.shape.DH, P = padded_units(DH);
  for (int64_t column = 0; column < P; column += width) {
    for (int64_t g = 0; g < 4; ++g) {
      for (int64_t j = 0; j < P; ++j) {
        const Real* from = p.R + ((g * p.shape.NH + head) * DH + j) * DH + column;
        Real* to = packed + column * 4 * P + (g * P + j) * width;
        for (int64_t lane = 0; lane < width; ++lane) to[lane] = j < DH && column + lane < DH ? from[lane] : Real(0);
      }
    }
  }
}

template <typename Real>
void cells(int64_t P, const Real* __restrict__ gates, const Real* __restrict__ now, const Real* __restrict__ before,
           const Real* __restrict__ dy, Real* __restrict__ dc, Real* __restrict__ dn, Real* __restrict__ dg,
           Real* __restrict__ db, Real* __restrict__ h) {
#pragma GCC ivdep
  for (int64_t j = 0; j < P; ++j) {
    const slstm::CellSaved<Real> saved{gates[j], gates[P + j], gates[2 * P + j], gates[3 * P + j]};
    const auto k = slstm::cell_coefficients(saved, now[j], now[P + j], before[j], before[P + j]);
    Real one_dg[4], one_dc = dc[j], one_dn = dn[j];
    slstm::cell_backward(k, dy[j], one_dc, one_dn, one_dg);
    dc[j] = one_dc;
    dn[j] = one_dn;
    dg[j] = one_dg[0];
    dg[P + j] = one_dg[1];
    dg[2 * P + j] = one_dg[2];
    dg[3 * P + j] = one_dg[3];
    db[j] += one_dg[0];
    db[P + j] += one_dg[1];
    db[2 * P + j] += one_dg[2];
    db[3 * P + j] += one_dg[3];
    h[j] = k.h;
  }
}

// h of a step from what forward saved of it.
template <typename Real>
void h_of(int64_t P, const Real* __restrict__ gates, const Real* __restrict__ now, Real* __restrict__ h) {
#pragma GCC ivdep
  for (int64_t j = 0; j < P; ++j) {
    const slstm::CellSaved<Real> saved{gates[j], gates[P + j], gates[2 * P + j], gates[3 * P + j]};
    h[j] = slstm::cell_coefficients(saved, now[j], now[P + j], Real(0), Real(0)).h;
  }
}

template <typename Real>
void backward(const slstm::BackwardParams<Real, Real>& p, const RowTile& tile, const Steps& steps, const Real* packed,
              Real* scratch) {
  const slstm::Shape& shape = p.shape;
  const int64_t DH = shape.DH, NH = shape.NH, P = padded_units(DH), head = tile.head, count = tile.count;
  Real* const dg = scratch;
  Real* const db = dg + count * 4 * P;
  Real* const dy = db + count * 4 * P;
  Real* const dh_rec = dy + count * P;
  Real* const dc = dh_rec + count * P;
  Real* const dn = dc + count * P;
  Real* const h = dn + count * P;  // (P)
  Real* const initial = h + P;     // (2, P)
  if (steps.end >= shape.S) {
    fill(scratch, Real(0), count * 12 * P + 3 * P);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t at = (tile.rows[r] * NH + head) * DH;
      copy(dh_rec + r * P, p.dh_last ? p.dh_last + at : nullptr, DH);
      copy(dc + r * P, p.dc_last ? p.dc_last + at : nullptr, DH);
      copy(dn + r * P, p.dn_last ? p.dn_last + at : nullptr, DH);
    }
  }

  int64_t active = 0;
  const int64_t longest = count > 0 ? row_length(shape, tile.rows[0]) : 0;
  for (int64_t t = (longest < steps.end ? longest : steps.end) - 1; t >= steps.begin; --t) {
    while (active < count && row_length(shape, tile.rows[active]) > t) ++active;
    for (int64_t r = 0; r < active; ++r) {
      const int64_t row = tile.rows[r], row_at = (row * NH + head) * DH;
      const Position at = position(shape, row, t);
      const int64_t token = (at.b * shape.S + at.s) * NH + head;
      const int64_t held = at.b * steps.held + at.s - steps.first;
      const bool reset = is_reset(shape, at);
      const bool from_initial = t == 0 || reset, given = t == 0 && !reset && p.c0;
      if (from_initial) {
        copy(initial, given ? p.c0 + row_at : nullptr, DH);
        copy(initial + P, given ? p.n0 + row_at : nullptr, DH);
      }
      const Real* const before = from_initial ? initial : p.saved_cells + (token - NH) * 2 * P;
      Real* const row_dy = dy + r * P;
      add(row_dy, dh_rec + r * P, p.dh.data ? p.dh.data + at.b * p.dh.batch + at.s * p.dh.step + head * p.dh.head : nullptr, DH);
      if (t > 0) {
        prefetch(p.saved_gates + (token - NH) * 4 * P, 4 * P);
        if (t > 1) prefetch(p.saved_cells + (token - 2 * NH) * 2 * P, 2 * P);
        if (p.dh.data) prefetch(p.dh.data + at.b * p.dh.batch + (at.s - 1) * p.dh.step + head * p.dh.head, DH);
      }
      Real* const row_dg = dg + r * 4 * P;
      cells(P, p.saved_gates + token * 4 * P, p.saved_cells + token * 2 * P, before, row_dy, dc + r * P, dn + r * P, row_dg,
            db + r * 4 * P, h);
      for (int g = 0; g < 4; ++g) copy(p.dx + ((held * 4 + g) * NH + head) * DH, row_dg + g * P, DH);
      Real* const h_prev = p.h_prev + (held * NH + head) * DH;
      if (t + 1 < steps.end && t + 1 < row_length(shape, row)) {
        copy(h_prev + NH * DH, is_reset(shape, position(shape, row, t + 1)) ? nullptr : h, DH);
      }
      if (t == 0) copy(h_prev, p.h0 && !reset ? p.h0 + row_at : nullptr, DH);
      if (t == steps.begin && t > 0) {  // the step before is of the next run
        h_of(P, p.saved_gates + (token - NH) * 4 * P, p.saved_cells + (token - NH) * 2 * P, h);
        copy(h_prev, reset ? nullptr : h, DH);
      }
      fill(dh_rec + r * P, Real(0), P);
    }
    product(active, dg, 4 * P, 4 * P, packed, P, dh_rec, P);
    for (int64_t r = 0; r < active; ++r) {
      if (!is_reset(shape, position(shape, tile.rows[r], t))) continue;
      fill(dh_rec + r * P, Real(0), P);
      fill(dc + r * P, Real(0), P);
      fill(dn + r * P, Real(0), P);
    }
  }

  if (steps.begin > 0) return;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t at = (tile.rows[r] * NH + head) * DH;
    for (int g = 0; g < 4; ++g) copy(p.db_rows + ((tile.rows[r] * 4 + g) * NH + head) * DH, db + (r * 4 + g) * P, DH);
    copy(p.dh0 + at, dh_rec + r * P, DH);
    copy(p.dc0 + at, dc + r * P, DH);
    copy(p.dn0 + at, dn + r * P, DH);
    for (int64_t j = 0; j < DH; ++j) {
      p.dm0[at + j] = p.c0 ? p.c0[at + j] * dc[r * P + j] + p.n0[at + j] * dn[r * P + j] : Real(0);
    }
  }
}

// Tokens whose numbers of one gate and head stay in the first-level cache.
constexpr int64_t kTokens = 64;

}  // namespace

namespace XLSTM_ISA {
template <typename Real>
void recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int64_t task) {
  const int64_t DH = p.DH, NH = p.NH, head = task % NH;
  const Real *const dx = p.dx + task * DH, *const h = p.h_prev + head * DH;
  Real* const dR = p.dR + task * DH * DH;
  fill(dR, Real(0), DH * DH);
  for (int64_t token = 0; token < p.tokens; token += kTokens) {
    const int64_t count = p.tokens - token < kTokens ? p.tokens - token : kTokens;
    tiles<Real>(DH, DH, nothing, [&](auto tile, int64_t row, int64_t column) {
      tile.template product<Order::kColumns>(dx + token * 4 * NH * DH + row, 4 * NH * DH, h + token * NH * DH + column, NH * DH,
                                             count);
      Real* const to = dR + row * DH + column;
      tile.each([&](int r, int v, Vector<Real>& sum) { sum += load(to + r * DH + v * kLanes<Real>); });
      tile.write(to, DH);
    });
  }
}

template <typename Real>
BackwardKernels<Real> backward_kernels() {
  return {pack_backward<Real>, backward<Real>};
}
template BackwardKernels<float> backward_kernels();
template BackwardKernels<double> backward_kernels();
template void recurrent_gradient(const SlstmRecurrentGradient<float>&, int64_t);
template void recurrent_gradient(const SlstmRecurrentGradient<double>&, int64_t);
}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
