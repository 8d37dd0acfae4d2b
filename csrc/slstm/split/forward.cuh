// split/forward.cuh - S1-S3 over all steps of one group (geometry.cuh), the same for the cluster and the grid kernel.
//
// Per step:  exchange.receive   h_{t-1} of the whole head, each warp its K groups, straight into mma registers
//            product.multiply   partial sums of the block's gates into shared memory
//            __syncthreads      the only block barrier of a step: the K groups of all warps are there
//            cell               one thread per (row, unit): raw = sums + b + x, S1-S3 in float32 registers
//            exchange.publish   the block's slice of h_t
// x of step t + 1 is requested in step t, behind the publication; what is saved is stored there too.
// A row that has ended, or does not exist, multiplies zeros: the rows of an mma's N never mix, so neither do their NaN.
#pragma once
#include "common/dispatch.h"
#include "device/convert.cuh"
#include "slstm/cell.cuh"
#include "slstm/split/concept.h"
#include "slstm/words.cuh"

namespace xlstm::slstm {

template <class Product, class Exchange>
XLSTM_DEVICE void split_pass(const KernelForward& p, const SplitPlace& place, Product& product, Exchange& exchange) {
  static_assert(std::is_empty_v<RequireForward<Product, Exchange>>, "concept.h");
  using Element = typename Product::Element;
  constexpr int UNITS = Product::UNITS, STEPS = Product::STEPS;
  const Shape& shape = p.shape;
  const int64_t DH = shape.DH, NH = shape.NH, token_stride = NH * DH;
  const int steps = longest(shape, place.first_row, kSplitRows);

  // the lane's row of the operand
  const int64_t operand_row = place.first_row + product.lane / 4;
  int operand_length;
  int64_t operand_at;  // its unit 0 in h, at step 0
  const uint8_t* flag = nullptr;
  {
    const SequenceRow row = sequence_row(shape, operand_row);
    operand_length = row.length;
    operand_at = ((row.batch * shape.S + row.first) * NH + place.head) * DH;
    if (shape.reset.data && row.length > 0) flag = reset_of_first_step(shape, row);
  }
  bool reset_ahead = flag && *flag;  // of the next step, loaded one step before it is used

  // the thread's cell
  const bool cell_warp = int(threadIdx.x) < kSplitRows * UNITS;
  const int cell_row = int(threadIdx.x) / UNITS, cell_unit = int(threadIdx.x) % UNITS, unit = place.rank * UNITS + cell_unit;
  const int64_t row_index = place.first_row + cell_row;
  const bool has_cell = cell_warp && unit < DH && row_index < shape.B;
  int length = 0;
  int64_t at = 0;  // the cell in h, at the step at hand
  const Element* x = nullptr;
  float h = 0.0f;
  CellState<float> state = cell_state(0.0f, 0.0f, 0.0f);
  Element ahead[4] = {};
  if (has_cell) {
    const SequenceRow row = sequence_row(shape, row_index);
    length = row.length;
    at = ((row.batch * shape.S + row.first) * NH + place.head) * DH + unit;
    if (length > 0)
      x = static_cast<const Element*>(p.x.data) + row.batch * p.x.batch + row.first * p.x.step + place.head * p.x.head + unit;
    const int64_t state_at = (row_index * NH + place.head) * DH + unit;
    if (p.h0) h = p.h0[state_at], state = cell_state(p.c0[state_at], p.n0[state_at], p.m0[state_at]);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      if (length > 0) ahead[gate] = x[gate * p.x_gate_stride];
  }

  uint4 operand[STEPS] = {};
  if (p.h0 && operand_length > 0) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
      if (product.input(i) < DH) operand[i] = Product::packet(p.h0 + (operand_row * NH + place.head) * DH + product.input(i));
  }

  for (int t = 0; t < steps; ++t) {
    const bool reset = reset_ahead;
    if (flag) {
      flag += shape.reset.step;
      reset_ahead = t + 1 < operand_length && *flag;
    }
    if (reset) {
#pragma unroll
      for (int i = 0; i < STEPS; ++i) operand[i] = uint4{0, 0, 0, 0};
    }
    product.multiply(operand);
    const bool fresh = __shfl_sync(device::kAllLanes, int(reset), cell_row % kSplitRows * 4) != 0;
    __syncthreads();
    exchange.after_barrier(t + 1, t + 1 < steps);
    if (cell_warp) {
      float raw[4];
      product.gates(raw, cell_row, cell_unit);
      const bool active = t < length;
      CellSaved<float> saved{};
      if (active) {
        if (fresh) state = cell_state(0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) raw[gate] += device::to_float(ahead[gate]);
        h = with_forget_gate(shape.forget_gate, [&](auto gate) {
          return cell_forward<decltype(gate)::value>(raw[0], raw[1], raw[2], raw[3], state, saved);
        });
      }
      const Element rounded = device::from_float<Element>(h);
      if (active) static_cast<Element*>(p.h)[at] = rounded;
      if (t + 1 < steps) exchange.publish(t + 1, rounded, cell_row, unit, int(DH));
      if (active && p.saved_cells) {
        uint32_t tails[TailWords<Element>::WORDS];
        TailWords<Element>::pack(tails, saved.d, fresh ? -saved.sf : saved.sf, saved.u, saved.w);  // the sign marks a reset
        store_words(static_cast<uint32_t*>(p.saved_tails) + at * TailWords<Element>::WORDS, tails);
        const uint32_t cells[2] = {__float_as_uint(state.c), __float_as_uint(state.n)};
        store_words(p.saved_cells + at * 2, cells);
      }
      at += token_stride;
      if (t + 1 < length) {
        x += p.x.step;
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) ahead[gate] = x[gate * p.x_gate_stride];
      }
    }
    if (t + 1 < steps) exchange.receive(operand, t + 1, product, operand_length, operand_at);
  }

  if (has_cell) {
    const int64_t state_at = (row_index * NH + place.head) * DH + unit;
    p.h_last[state_at] = h, p.c_last[state_at] = state.c, p.n_last[state_at] = state.n;
    p.m_last[state_at] = length == 0 && p.m0 ? p.m0[state_at] : returned_m(state);
  }
}

}  // namespace xlstm::slstm
