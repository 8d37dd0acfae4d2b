// slstm_forward.cpp - S1-S3 over all steps of a tile, compiled once per instruction set (XLSTM_ISA names the namespace).
//
// Per step: gates = x + b, then + R h for all rows of the tile (product.h), then the cells of each row, vectorised over units.
// Without a packed R, for a single step, R is read as it is.
// Scratch per row, P padded units each: gates (4), h, c, n, m.  Units beyond DH hold zeros and never leave the scratch.
#include "cpu/product.h"
#include "cpu/slstm_rows.h"
#include "slstm/cell.cuh"

namespace xlstm::cpu {
namespace {

// packed[panel][k][column]: W[k][g P + j] = R[g, head, j, k].
template <typename Real>
void pack_forward(const slstm::ForwardParams<Real, Real>& p, int64_t head, Real* packed) {
  constexpr int64_t width = kPanelBytes / sizeof(Real);
  const int64_t DH = p.shape.DH, P = padded_units(DH);
  for (int64_t column = 0; column < 4 * P; column += width) {
    for (int64_t lane = 0; lane < width; ++lane) {
      const int64_t g = (column + lane) / P, j = (column + lane) % P;
      const Real* from = p.R + ((g * p.shape.NH + head) * DH + j) * DH;
      for (int64_t k = 0; k < DH; ++k) packed[column * DH + k * width + lane] = j < DH ? from[k] : Real(0);
    }
  }
}

template <slstm::ForgetGate forget_gate, bool save, typename Real>
void cells(int64_t P, const Real* __restrict__ gates, Real* __restrict__ h, Real* __restrict__ c, Real* __restrict__ n,
           Real* __restrict__ m, Real* __restrict__ saved_gates, Real* __restrict__ saved_cells) {
#pragma GCC ivdep
  for (int64_t j = 0; j < P; ++j) {
    slstm::CellState<Real> state{c[j], n[j], m[j]};
    slstm::CellSaved<Real> saved;
    h[j] = slstm::cell_forward<forget_gate>(gates[j], gates[P + j], gates[2 * P + j], gates[3 * P + j], state, saved);
    c[j] = state.c;
    n[j] = state.n;
    m[j] = state.m;
    if (save) {
      saved_gates[j] = saved.d;
      saved_gates[P + j] = saved.sf;
      saved_gates[2 * P + j] = saved.u;
      saved_gates[3 * P + j] = saved.w;
      saved_cells[j] = state.c;
      saved_cells[P + j] = state.n;
    }
  }
}

template <slstm::ForgetGate forget_gate, bool save, typename Real>
void forward_tile(const slstm::ForwardParams<Real, Real>& p, const RowTile& tile, const Steps& steps, const Real* packed,
                  Real* scratch) {
  const slstm::Shape& shape = p.shape;
  const int64_t DH = shape.DH, NH = shape.NH, P = padded_units(DH), head = tile.head;
  Real* const gates = scratch;
  Real* const h = gates + tile.count * 4 * P;
  Real* const c = h + tile.count * P;
  Real* const n = c + tile.count * P;
  Real* const m = n + tile.count * P;
  if (steps.begin == 0) {
    fill(scratch, Real(0), tile.count * 8 * P);
    fill(m, slstm::kFresh<Real>, tile.count * P);
    for (int64_t r = 0; r < tile.count && p.h0; ++r) {
      const int64_t at = (tile.rows[r] * NH + head) * DH;
      copy(h + r * P, p.h0 + at, DH);
      copy(c + r * P, p.c0 + at, DH);
      copy(n + r * P, p.n0 + at, DH);
      for (int64_t j = 0; j < DH; ++j) m[r * P + j] = slstm::cell_state(p.c0[at + j], p.n0[at + j], p.m0[at + j]).m;
    }
  }

  int64_t active = tile.count;
  for (int64_t t = steps.begin; t < steps.end; ++t) {
    while (active > 0 && row_length(shape, tile.rows[active - 1]) <= t) --active;
    if (active == 0) break;
    for (int64_t r = 0; r < active; ++r) {
      const Position at = position(shape, tile.rows[r], t);
      if (is_reset(shape, at)) {
        fill(h + r * P, Real(0), P);
        fill(c + r * P, Real(0), P);
        fill(n + r * P, Real(0), P);
        fill(m + r * P, slstm::kFresh<Real>, P);
      }
      for (int g = 0; g < 4; ++g) {
        const Real* const x =
            p.x.data + at.b * p.x.batch + (at.s - steps.first) * p.x.step + g * p.x_gate_stride + head * p.x.head;
        const Real* const b = p.b ? p.b + (g * NH + head) * DH : nullptr;
        add(gates + (r * 4 + g) * P, x, b, DH);
        fill(gates + (r * 4 + g) * P + DH, Real(0), P - DH);
        if (t + 1 < steps.end && t + 1 < row_length(shape, tile.rows[r])) prefetch(x + p.x.step, DH);
      }
    }
    if (packed) {
      product(active, h, P, DH, packed, 4 * P, gates, 4 * P);
    } else {
      for (int64_t g = 0; g < 4; ++g) {
        product_unpacked(active, h, P, DH, p.R + (g * NH + head) * DH * DH, DH, gates + g * P, 4 * P);
      }
    }
    for (int64_t r = 0; r < active; ++r) {
      const Position at = position(shape, tile.rows[r], t);
      Real* const row_gates = gates + r * 4 * P;
      const int64_t token = (at.b * shape.S + at.s) * NH + head;
      cells<forget_gate, save>(P, row_gates, h + r * P, c + r * P, n + r * P, m + r * P,
                               save ? p.saved_gates + token * 4 * P : nullptr, save ? p.saved_cells + token * 2 * P : nullptr);
      copy(p.h + token * DH, h + r * P, DH);
    }
  }

  if (steps.end < shape.S) return;
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t at = (tile.rows[r] * NH + head) * DH;
    const bool untouched = row_length(shape, tile.rows[r]) == 0 && p.m0;
    copy(p.h_last + at, h + r * P, DH);
    copy(p.c_last + at, c + r * P, DH);
    copy(p.n_last + at, n + r * P, DH);
    for (int64_t j = 0; j < DH; ++j) {
      const slstm::CellState<Real> state{c[r * P + j], n[r * P + j], m[r * P + j]};
      p.m_last[at + j] = untouched ? p.m0[at + j] : slstm::returned_m(state);
    }
  }
}

template <typename Real>
void forward(const slstm::ForwardParams<Real, Real>& p, const RowTile& tile, const Steps& steps, const Real* packed,
             Real* scratch) {
  slstm::with_forget_gate(p.shape.forget_gate, [&](auto gate) {
    if (p.saved_gates)
      forward_tile<decltype(gate)::value, true>(p, tile, steps, packed, scratch);
    else
      forward_tile<decltype(gate)::value, false>(p, tile, steps, packed, scratch);
  });
}

}  // namespace

namespace XLSTM_ISA {
template <typename Real>
ForwardKernels<Real> forward_kernels() {
  return {pack_forward<Real>, forward<Real>};
}
template ForwardKernels<float> forward_kernels();
template ForwardKernels<double> forward_kernels();
}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
