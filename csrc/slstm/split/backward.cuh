// split/backward.cuh - S4 over all steps of one group, last step first, the same for the cluster and the grid kernel.
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
#include "slstm/split/concept.h"
#include "slstm/words.cuh"

namespace xlstm::slstm {

// One cell, its running gradients, and what is loaded for its next step.
template <class Element>
struct BackwardCell {
  int length = 0;
  bool cut = true;            // nothing comes back from the step after: the row ends here, or that step begins afresh
  int64_t at = 0, dh_at = 0;  // the cell at step 0: in (B, S, NH, DH), and in dh
  const uint8_t* flags = nullptr;
  float dc = 0.0f, dn = 0.0f, db[4] = {};
  float c = 0.0f, n = 0.0f;                // after the step at hand
  float c_before = 0.0f, n_before = 0.0f;  // before it, as saved
  float dh = 0.0f;                         // from outside
  uint32_t tails[TailWords<Element>::WORDS] = {};
  bool reset = false;

  XLSTM_DEVICE BackwardCell(const KernelBackward& p, const SplitPlace& place, int row_in_tile, int unit, bool exists) {
    const Shape& shape = p.shape;
    const int64_t index = place.first_row + row_in_tile;
    if (!exists || index >= shape.B) return;
    const SequenceRow row = sequence_row(shape, index);
    length = row.length;
    at = ((row.batch * shape.S + row.first) * shape.NH + place.head) * shape.DH + unit;
    dh_at = row.batch * p.dh.batch + row.first * p.dh.step + place.head * p.dh.head + unit;
    const int64_t state_at = (index * shape.NH + place.head) * shape.DH + unit;
    if (shape.reset.data) flags = reset_of_first_step(shape, row);
    if (p.dc_last) dc = p.dc_last[state_at];
    if (p.dn_last) dn = p.dn_last[state_at];
  }

  // Requests what step t needs. c, n after it are those before the step after it, except at the row's end.
  // state_at: the cell in (B, NH, DH).
  XLSTM_DEVICE void load(const KernelBackward& p, int64_t state_at, int t) {
    if (t < 0 || t >= length) return;
    const Shape& shape = p.shape;
    const int64_t now = at + t * shape.NH * shape.DH;
    if (t == length - 1) {
      const float2 last = device::load_word<float2>(p.saved_cells + now * 2);
      c = last.x, n = last.y;
    } else {
      c = c_before, n = n_before;
    }
    load_words(tails, static_cast<const uint32_t*>(p.saved_tails) + now * TailWords<Element>::WORDS);
    if (t > 0) {
      const float2 before = device::load_word<float2>(p.saved_cells + (now - shape.NH * shape.DH) * 2);
      c_before = before.x, n_before = before.y;
    } else {
      c_before = p.c0 ? p.c0[state_at] : 0.0f, n_before = p.n0 ? p.n0[state_at] : 0.0f;
    }
    dh = p.dh.data ? device::to_float(static_cast<const Element*>(p.dh.data)[dh_at + t * p.dh.step]) : 0.0f;
    if (t == length - 1 && p.dh_last) dh += p.dh_last[state_at];
    reset = flags && flags[t * shape.reset.step];
  }
  XLSTM_DEVICE CellCoefficients<float> coefficients() const {
    CellSaved<float> saved;
    TailWords<Element>::unpack(tails, saved.d, saved.sf, saved.u, saved.w);
    saved.sf = device::absolute(saved.sf);
    return cell_coefficients(saved, c, n, reset ? 0.0f : c_before, reset ? 0.0f : n_before);
  }
  XLSTM_DEVICE void step(const CellCoefficients<float>& k, float dh_rec, float (&dg)[4]) {
    cell_backward(k, cut ? dh : dh + dh_rec, dc, dn, dg);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) db[gate] += dg[gate];
    if (reset) dc = dn = 0.0f;
    cut = reset;
  }
  XLSTM_DEVICE void finish(const KernelBackward& p, int64_t state_at, int64_t db_at, float dh_rec) const {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) p.db_parts[db_at + gate * p.shape.NH * p.shape.DH] = db[gate];
    p.dh0[state_at] = length > 0 ? (cut ? 0.0f : dh_rec) : p.dh_last ? p.dh_last[state_at] : 0.0f;
    p.dc0[state_at] = dc, p.dn0[state_at] = dn;
    p.dm0[state_at] = p.c0 ? p.c0[state_at] * dc + p.n0[state_at] * dn : 0.0f;
  }
};

template <class Product, class Exchange>
XLSTM_DEVICE void split_pass(const KernelBackward& p, const SplitPlace& place, Product& product, Exchange& exchange) {
  static_assert(std::is_empty_v<RequireBackward<Product, Exchange>>, "concept.h");
  using Element = typename Product::Element;
  constexpr int UNITS = Product::UNITS;
  const Shape& shape = p.shape;
  const int64_t DH = shape.DH, gate_stride = shape.NH * DH;
  const int steps = longest(shape, place.first_row, kSplitRows);

  const bool cell_warp = int(threadIdx.x) < kSplitRows / 2 * UNITS;
  const int pair = int(threadIdx.x) / UNITS, cell_unit = int(threadIdx.x) % UNITS, unit = place.rank * UNITS + cell_unit;
  const int64_t in_gate = place.head * DH + unit;
  const bool exists = cell_warp && unit < DH;
  const auto row_index = [&](int e) { return place.first_row + 2 * pair + e; };
  const auto state_at = [&](int e) { return row_index(e) * gate_stride + in_gate; };
  BackwardCell<Element> cells[2] = {{p, place, 2 * pair, unit, exists}, {p, place, 2 * pair + 1, unit, exists}};
#pragma unroll
  for (int e = 0; e < 2; ++e) cells[e].load(p, state_at(e), steps - 1);

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
        if (t < cells[e].length) cells[e].step(k[e], e == 0 ? dh_rec.x : dh_rec.y, dg);
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
        if (t < cells[e].length)  // dx is (B, S, 4, NH, DH): four gates to a token, and the cell's place in a gate
          Product::store_dx(static_cast<Element*>(p.dx) + 4 * (cells[e].at + t * gate_stride) - 3 * in_gate, gate_stride,
                            rounded[e]);
        cells[e].load(p, state_at(e), t - 1);
      }
    }
  }
  if (!cell_warp) return;
  float2 dh_rec{0.0f, 0.0f};
  if (steps > 0) dh_rec = exchange.receive(steps, pair, cell_unit);
#pragma unroll
  for (int e = 0; e < 2; ++e)
    if (exists && row_index(e) < shape.B)
      cells[e].finish(p, state_at(e), row_index(e) * 4 * gate_stride + in_gate, e == 0 ? dh_rec.x : dh_rec.y);
}

}  // namespace xlstm::slstm
