// block_step_rows.cpp - the parts of a block's step, compiled once per instruction set (XLSTM_ISA names the namespace).
#include "cpu/block_step.h"

#include <algorithm>
#include <cmath>

#include "cpu/conv.h"
#include "cpu/layer_rows.h"
#include "slstm/cell.cuh"

namespace xlstm::cpu {
namespace {

// y[j] = <w_j, x> for `outputs` rows of K numbers, as many at a time as a vector has lanes. Every sum has its own order, which
// does not depend on the others.
template <typename Real>
XLSTM_DEVICE void row_dots_of(const Real* w, const Real* x, int64_t K, int64_t outputs, Real* y) {
  constexpr int lanes = kLanes<Real>;
  const int64_t whole = K / lanes * lanes;
  for (int64_t first = 0; first < outputs; first += lanes) {
    const int64_t last = outputs - first - 1;  // rows beyond it are read as it, and left out
    const Real* row[lanes];
    for (int i = 0; i < lanes; ++i) row[i] = w + (first + std::min<int64_t>(i, last)) * K;
    Vector<Real> sums[lanes] = {};
    for (int64_t k = 0; k < whole; k += lanes) {
      const Vector<Real> x_k = load(x + k);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) sums[i] += x_k * load(row[i] + k);
    }
    const Vector<Real> total = sum_each<Real>(sums);
    for (int64_t i = 0; i <= std::min<int64_t>(last, lanes - 1); ++i) {
      Real sum = total[i];
      for (int64_t k = whole; k < K; ++k) sum += row[i][k] * x[k];
      y[first + i] = sum;
    }
  }
}

// y (rows, I) = block-diagonal W (I / width, width, width) times x, + bias.
template <typename Real>
void block_diagonal(const Real* W, const Real* bias, const Real* x, int64_t I, int64_t width, Real* y) {
  for (int64_t block = 0; block < I; block += width) row_dots_of(W + block * width, x + block, width, width, y + block);
  for (int64_t d = 0; bias && d < I; ++d) y[d] += bias[d];
}

template <typename Real>
void silu(Real* x, int64_t count) {
  for (int64_t d = 0; d < count; d += kLanes<Real>) store(x + d, load(x + d) * sigmoid<Real>(load(x + d)));
}

// The moments of any number of features.
template <typename Real>
void norm(const Real* x, const Real* weight, Real eps, int64_t D, Real* y) {
  Real sum = 0, squares = 0;
  for (int64_t d = 0; d < D; ++d) sum += x[d];
  const Real mean = sum / static_cast<Real>(D);
  for (int64_t d = 0; d < D; ++d) squares += (x[d] - mean) * (x[d] - mean);
  const Real inverse = Real(1) / std::sqrt(squares / static_cast<Real>(D) + eps);
  for (int64_t d = 0; d < D; ++d) y[d] = (x[d] - mean) * inverse * (weight ? Real(1) + weight[d] : Real(1));
}

template <typename Step, typename Real>
void convolve(const Step& p, int64_t features, const Real* x, int64_t b, Real* c) {
  ConvStep<Real> conv;
  conv.B = p.B;
  conv.D = features;
  conv.K = p.K;
  conv.held_steps = p.held_steps;
  conv.x = x - b * features;
  conv.held = p.held;
  conv.w = p.conv_weight;
  conv.b = p.conv_bias;
  conv.window = p.window;
  conv.y = c - b * features;
  XLSTM_ISA::conv_step_row(conv, b);
}

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
void linear(const Linear<Real>& p, int64_t first, int64_t end) {
  for (int64_t row = 0; row < p.rows; ++row) {
    Real* const y = p.y + row * p.outputs;
    row_dots_of(p.weight + first * p.K, p.x + row * p.K, p.K, end - first, y + first);
    for (int64_t j = first; p.bias && j < end; ++j) y[j] += p.bias[j];
    for (int64_t j = first; p.beside && j < end; ++j) y[j] += p.beside[row * p.outputs + j];
  }
}

template <typename Real>
void norm_row(const Real* x, const Real* weight, Real eps, int64_t D, Real* y) {
  norm(x, weight, eps, D, y);
}

template <typename Real>
void mlstm_block_inputs(const MlstmBlockStep<Real>& p, const MlstmBlockMemory<Real>& memory, int64_t b) {
  const int64_t I = p.I;
  const Real* const a = memory.up + b * 2 * I;
  Real *const c = memory.c + b * I, *const qkv = memory.qkv + b * 3 * I;
  convolve(p, I, a, b, c);
  silu(c, I);
  block_diagonal(p.q_weight, p.q_bias, c, I, p.width, qkv);
  block_diagonal(p.k_weight, p.k_bias, c, I, p.width, qkv + I);
  block_diagonal(p.v_weight, p.v_bias, a, I, p.width, qkv + 2 * I);
  row_dots_of(p.i_weight, qkv, 3 * I, p.NH, memory.i + b * p.NH);
  row_dots_of(p.f_weight, qkv, 3 * I, p.NH, memory.f + b * p.NH);
  for (int64_t head = 0; head < p.NH; ++head) {
    memory.i[b * p.NH + head] += p.i_bias[head];
    memory.f[b * p.NH + head] += p.f_bias[head];
  }
  const Real scale = Real(1) / std::sqrt(static_cast<Real>(p.DH()));
  for (int64_t d = 0; d < I; ++d) {
    memory.q[b * I + d] = qkv[d];
    memory.k[b * I + d] = qkv[I + d] * scale;
    memory.v[b * I + d] = qkv[2 * I + d];
  }
}

template <typename Real>
void mlstm_block_output(const MlstmBlockStep<Real>& p, const MlstmBlockMemory<Real>& memory, int64_t b) {
  const int64_t I = p.I, DH = p.DH();
  const Real *const h = memory.h + b * I, *const c = memory.c + b * I, *const g = memory.up + (2 * b + 1) * I;
  for (int64_t head = 0; head < I; head += DH) {
    const Moments<Real> moments(h + head, DH, p.norm_eps);
    for (int64_t d = head; d < head + DH; d += kLanes<Real>) {
      const Vector<Real> gate = load(g + d);
      Vector<Real> normed = moments.of(load(h + d));
      if (p.norm_weight) normed += normed * load(p.norm_weight + d);
      store(memory.inner + b * I + d, (normed + load(p.skip + d) * load(c + d)) * (gate * sigmoid<Real>(gate)));
    }
  }
}

template <typename Real>
void slstm_block_cell(const SlstmBlockStep<Real>& p, const SlstmBlockMemory<Real>& memory, int64_t b) {
  const int64_t D = p.D, NH = p.NH, DH = p.DH();
  const Real* const x = memory.normed + b * D;
  Real *const c = memory.c + b * D, *const raw = memory.raw + b * 4 * D, *const recurrent = memory.recurrent + b * 4 * D;
  if (p.K) {
    convolve(p, D, x, b, c);
    for (int64_t d = 0; d < D; ++d) c[d] = c[d] / (Real(1) + std::exp(-c[d]));
  } else {
    std::copy(x, x + D, c);
  }
  const Real* const h_before = p.state ? p.state + b * D : nullptr;
  for (int64_t head = 0; head < NH; ++head) {
    const int64_t at = head * DH;
    for (int g = 0; g < 4; ++g) row_dots_of(p.gates[g] + at * DH, (g < 2 ? c : x) + at, DH, DH, raw + g * D + at);
    if (h_before) row_dots_of(p.R + 4 * at * DH, h_before + at, DH, 4 * DH, recurrent);
    for (int g = 0; g < 4; ++g) {
      for (int64_t j = 0; j < DH; ++j) {
        raw[g * D + at + j] += p.bias[g * D + at + j] + (h_before ? recurrent[g * DH + j] : Real(0));
      }
    }
  }
  Real* const h = memory.recurrent + b * 4 * D;
  const int64_t part = p.B * D;  // from h to c to n to m
  for (int64_t d = 0; d < D; ++d) {
    const int64_t at = b * D + d;
    slstm::CellState<Real> state{Real(0), Real(0), slstm::kFresh<Real>};
    if (p.state) state = slstm::cell_state(p.state[part + at], p.state[2 * part + at], p.state[3 * part + at]);
    slstm::CellSaved<Real> saved;
    h[d] = slstm::cell_forward<slstm::ForgetGate::kSigmoid>(raw[d], raw[D + d], raw[2 * D + d], raw[3 * D + d], state, saved);
    p.state_last[at] = h[d];
    p.state_last[part + at] = state.c;
    p.state_last[2 * part + at] = state.n;
    p.state_last[3 * part + at] = slstm::returned_m(state);
  }
  Real* const mixed = memory.mixed + b * D;
  for (int64_t head = 0; head < NH; ++head) {
    norm(h + head * DH, p.group_norm ? p.group_norm + head * DH : nullptr, p.norm_eps, DH, mixed + head * DH);
  }
  for (int64_t d = 0; d < D; ++d) mixed[d] += p.x[b * D + d];
}

// inner = gelu(gate) up, of (gate, up).
template <typename Real>
void gated(const Real* up, int64_t F, Real* inner) {
  for (int64_t d = 0; d < F; ++d) {
    inner[d] = Real(0.5) * up[d] * (Real(1) + std::erf(up[d] * Real(0.70710678118654752))) * up[F + d];
  }
}

#define XLSTM_BLOCK_STEP_OF(Real)                                                                        \
  template void linear(const Linear<Real>&, int64_t, int64_t);                                           \
  template void norm_row(const Real*, const Real*, Real, int64_t, Real*);                                \
  template void mlstm_block_inputs(const MlstmBlockStep<Real>&, const MlstmBlockMemory<Real>&, int64_t); \
  template void mlstm_block_output(const MlstmBlockStep<Real>&, const MlstmBlockMemory<Real>&, int64_t); \
  template void slstm_block_cell(const SlstmBlockStep<Real>&, const SlstmBlockMemory<Real>&, int64_t);   \
  template void gated(const Real*, int64_t, Real*);
XLSTM_BLOCK_STEP_OF(float)
XLSTM_BLOCK_STEP_OF(double)

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
