// split_backward.cuh - S4 over all steps of one group, last step first, the same for the cluster and the grid kernel.
//
// The blocks own the units that they own in forward, and the same slice of R, transposed: a block multiplies its own dg by it and
// gets a part of dh of every unit of the head. These parts are sent to the owners, who add them in the order of the ranks
// (a reduce-scatter in float32). Gathering dg of all blocks instead would move twice the bytes and hold twice the receive
// buffers: at DH 768 that does not fit beside R.
// Per step:  coefficients of the cells, from what forward saved, before anything is waited for
//            exchange.receive   dh from the step after, the parts of all blocks
//            cell               one thread per (two rows, unit): S4; dg, rounded, into shared memory
//            __syncthreads      the only block barrier of a step: dg of the block is complete
//            product.multiply   each warp its inputs, each piece of 16 sent as soon as it is there
// dg in shared memory has two buffers: the barrier of the next step lies between a read and the write two steps later.
// The gradients of a row that has not begun yet (seen from the end) stay in the registers they were loaded into.
#pragma once
#include "device/convert.cuh"
#include "slstm/cell.cuh"
#include "slstm/kernels.h"
#include "slstm/split_geometry.cuh"
#include "slstm/unit_words.cuh"

namespace xlstm::slstm {

// One cell, its running gradients, and what is loaded for its next step.
template <class Element>
struct BackwardCell {
  const KernelBackward& p;
  const int head, unit;
  SequenceRow row;
  int64_t state_at, first_token;
  bool exists;
  float dh_last = 0.0f, dc = 0.0f, dn = 0.0f, db[4] = {};
  float c = 0.0f, n = 0.0f;                         // after the step at hand
  uint32_t tails[TailWords<Element>::WORDS] = {};   // of the step at hand
  float c_before = 0.0f, n_before = 0.0f, dh = 0.0f;
  bool reset = false;

  XLSTM_DEVICE BackwardCell(const KernelBackward& params, const SplitPlace& place, int row_in_tile, int unit_, bool cell_warp)
      : p(params), head(place.head), unit(unit_) {
    const Shape& shape = p.shape;
    const int64_t index = place.first_row + row_in_tile;
    exists = cell_warp && index < shape.B && unit < shape.DH;
    row = exists ? sequence_row(shape, index) : SequenceRow{0, 0, 0};
    state_at = (index * shape.NH + head) * shape.DH + unit;
    first_token = row.batch * shape.S + row.first;
    if (!exists) return;
    if (p.dh_last) dh_last = p.dh_last[state_at];
    if (p.dc_last) dc = p.dc_last[state_at];
    if (p.dn_last) dn = p.dn_last[state_at];
  }
  XLSTM_DEVICE int64_t element(int t) const { return ((first_token + t) * p.shape.NH + head) * p.shape.DH + unit; }
  XLSTM_DEVICE bool active(int t) const { return t < row.length; }

  // Requests what step t needs. n, c after it are those before the step after it, except at the row's end.
  XLSTM_DEVICE void load(int t) {
    if (t < 0 || !active(t)) return;
    const Shape& shape = p.shape;
    if (t == row.length - 1) {
      const float2 last = device::load_word<float2>(p.saved_cells + element(t) * 2);
      c = last.x, n = last.y;
    } else {
      c = c_before, n = n_before;
    }
    load_words(tails, static_cast<const uint32_t*>(p.saved_tails) + element(t) * TailWords<Element>::WORDS);
    if (t > 0) {
      const float2 before = device::load_word<float2>(p.saved_cells + element(t - 1) * 2);
      c_before = before.x, n_before = before.y;
    } else {
      c_before = p.c0 ? p.c0[state_at] : 0.0f, n_before = p.n0 ? p.n0[state_at] : 0.0f;
    }
    if (p.dh)
      dh = device::to_float(static_cast<const Element*>(
          p.dh)[row.batch * p.dh_stride_b + (row.first + t) * p.dh_stride_s + head * p.dh_stride_n + unit]);
    reset = shape.reset && reset_of_first_step(shape, row)[t * shape.reset_stride_s];
  }
  XLSTM_DEVICE CellCoefficients<float> coefficients() const {
    CellSaved<float> saved;
    TailWords<Element>::unpack(tails, saved.d, saved.sf, saved.u, saved.w);
    return cell_coefficients(saved, c, n, reset ? 0.0f : c_before, reset ? 0.0f : n_before);
  }
  // dh_rec: what the step after sent. At the row's end it is the gradient of the final h.
  XLSTM_DEVICE void step(int t, const CellCoefficients<float>& k, float dh_rec, bool reset_after, float (&dg)[4]) {
    const float recurrent = t == row.length - 1 ? dh_last : reset_after ? 0.0f : dh_rec;
    cell_backward(k, dh + recurrent, dc, dn, dg);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) db[gate] += dg[gate];
    if (reset) dc = dn = 0.0f;
  }
  XLSTM_DEVICE void finish(float dh_rec) {
    if (!exists) return;
    const Shape& shape = p.shape;
    const int64_t index = state_at / (shape.NH * shape.DH);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) p.db_rows[((index * 4 + gate) * shape.NH + head) * shape.DH + unit] = db[gate];
    p.dh0[state_at] = row.length == 0 ? dh_last : reset ? 0.0f : dh_rec;  // reset: that of step 0
    p.dc0[state_at] = dc, p.dn0[state_at] = dn;
    p.dm0[state_at] = p.c0 ? p.c0[state_at] * dc + p.n0[state_at] * dn : 0.0f;
  }
};

template <class Product, class Exchange>
XLSTM_DEVICE void split_backward(const KernelBackward& p, const SplitPlace& place, Product& product, Exchange& exchange) {
  using Element = typename Product::Element;
  constexpr int UNITS = Product::UNITS;
  const Shape& shape = p.shape;
  const int64_t DH = shape.DH, gate_stride = shape.NH * DH;
  const int steps = longest(shape, place.first_row, kSplitRows);

  const bool cell_warp = int(threadIdx.x) < kSplitRows / 2 * UNITS;
  const int pair = int(threadIdx.x) / UNITS, cell_unit = int(threadIdx.x) % UNITS, unit = place.rank * UNITS + cell_unit;
  BackwardCell<Element> cells[2] = {{p, place, 2 * pair, unit, cell_warp}, {p, place, 2 * pair + 1, unit, cell_warp}};
#pragma unroll
  for (int e = 0; e < 2; ++e) cells[e].load(steps - 1);

  bool reset_after[2] = {};
  for (int done = 0; done < steps; ++done) {
    const int t = steps - 1 - done, which = done % 2;
    typename Product::Rounded rounded[2];
    if (cell_warp) {
      CellCoefficients<float> k[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) k[e] = cells[e].coefficients();
      float2 dh_rec{0.0f, 0.0f};
      if (done > 0) dh_rec = exchange.receive(done, pair, cell_unit);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float dg[4] = {};
        if (cells[e].active(t)) {
          cells[e].step(t, k[e], e == 0 ? dh_rec.x : dh_rec.y, reset_after[e], dg);
          reset_after[e] = cells[e].reset;
        }
        rounded[e] = product.put(which, 2 * pair + e, cell_unit, dg);
      }
    }
    __syncthreads();
    exchange.after_barrier(done + 1);
    product.multiply(which, [&](int piece, int at, const auto& values) { exchange.send(done + 1, piece, at, values); });
    exchange.sent(done + 1, product, int(DH));
    if (cell_warp) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (cells[e].active(t))
          Product::store_dx(static_cast<Element*>(p.dx) + (((cells[e].first_token + t) * 4) * shape.NH + place.head) * DH + unit,
                            gate_stride, rounded[e]);
        if (t > 0) cells[e].load(t - 1);
      }
    }
  }
  if (!cell_warp) return;
  float2 dh_rec{0.0f, 0.0f};
  if (steps > 0) dh_rec = exchange.receive(steps, pair, cell_unit);
  cells[0].finish(dh_rec.x);
  cells[1].finish(dh_rec.y);
}

}  // namespace xlstm::slstm
