// block_step.h - one token of a whole residual block on a CPU, float and double: what the modules of xlstm_cuda/blocks compute
// one after the other, in one call. Weights lie as the modules have them, tensors are contiguous. The new state may be the old
// one.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace xlstm::cpu {

// y = W x + bias + beside for a few rows x (rows, K); W (outputs, K), y and beside (rows, outputs); bias and beside may be null.
template <typename Real>
struct Linear {
  int64_t rows = 0, K = 0, outputs = 0;
  const Real *weight = nullptr, *bias = nullptr, *x = nullptr, *beside = nullptr;
  Real* y = nullptr;
};

// The mLSTM block: y = x + W_down ((norm(h) + skip c) SiLU(g)),  (a, g) = W_up norm(x), as in mlstm_layer.h.
template <typename Real>
struct MlstmBlockStep {
  int64_t B = 0, D = 0, I = 0, NH = 0, K = 0, width = 0, held_steps = 0;  // held_steps: K or K - 1
  const Real* x = nullptr;                                                // (B, D)
  const Real* block_norm = nullptr;                                       // (D) or null; and eps of the two norms
  Real block_eps = 0, norm_eps = 0;
  const Real *up_weight = nullptr, *up_bias = nullptr, *down_weight = nullptr, *down_bias = nullptr;
  const Real *conv_weight = nullptr, *conv_bias = nullptr;
  const Real *q_weight = nullptr, *k_weight = nullptr, *v_weight = nullptr;
  const Real *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;
  const Real *i_weight = nullptr, *f_weight = nullptr, *i_bias = nullptr, *f_bias = nullptr;
  const Real *norm_weight = nullptr, *skip = nullptr;
  const Real *held = nullptr, *C = nullptr, *n = nullptr, *m = nullptr;  // (B, held_steps, I) or null; (B, NH, DH, DH), ...
  Real *window = nullptr, *C_last = nullptr, *n_last = nullptr, *m_last = nullptr;  // (B, K, I), ...
  Real* y = nullptr;                                                                // (B, D)

  int64_t DH() const { return I / NH; }
};
template <class R, typename Real>
void read(R& r, MlstmBlockStep<Real>& p) {
  r("sizes", p.B, p.D, p.I, p.NH, p.K, p.width, p.held_steps)("x", p.x);
  r("block_norm", p.block_norm)("block_eps", p.block_eps)("norm_eps", p.norm_eps);
  r("projections", p.up_weight, p.up_bias, p.down_weight, p.down_bias);
  r("weights", p.conv_weight, p.conv_bias, p.q_weight, p.k_weight, p.v_weight, p.q_bias, p.k_bias, p.v_bias, p.i_weight,
    p.f_weight, p.i_bias, p.f_bias, p.norm_weight, p.skip);
  r("before", p.held, p.C, p.n, p.m)("after", p.window, p.C_last, p.n_last, p.m_last)("y", p.y);
}

// The sLSTM block: x' = x + norm(slstm(gates)), y = x' + W_down (gelu(W_gate norm(x')) W_up norm(x')), or x' without a
// feed-forward network (F = 0).
template <typename Real>
struct SlstmBlockStep {
  int64_t B = 0, D = 0, NH = 0, K = 0, F = 0, held_steps = 0;  // K = 0: no convolution
  const Real* x = nullptr;                                     // (B, D)
  const Real* block_norm = nullptr;
  Real block_eps = 0, norm_eps = 0, ffn_eps = 0;
  const Real *conv_weight = nullptr, *conv_bias = nullptr;
  const Real* gates[4] = {};                              // (NH, DH out, DH in) of i, f, z, o
  const Real *R = nullptr, *bias = nullptr;               // (NH, 4, DH out, DH in), (4, D)
  const Real *group_norm = nullptr, *ffn_norm = nullptr;  // (D) or null
  const Real *up_weight = nullptr, *up_bias = nullptr, *down_weight = nullptr, *down_bias = nullptr;  // (2 F, D), (D, F)
  const Real *held = nullptr, *state = nullptr;   // (B, held_steps, D) or null; (4, B, D) of h, c, n, m, or null
  Real *window = nullptr, *state_last = nullptr;  // (B, K, D), (4, B, D)
  Real* y = nullptr;                              // (B, D)

  int64_t DH() const { return D / NH; }
};
template <class R, typename Real>
void read(R& r, SlstmBlockStep<Real>& p) {
  r("sizes", p.B, p.D, p.NH, p.K, p.F, p.held_steps)("x", p.x);
  r("block_norm", p.block_norm)("block_eps", p.block_eps)("norm_eps", p.norm_eps)("ffn_eps", p.ffn_eps);
  r("weights", p.conv_weight, p.conv_bias, p.gates[0], p.gates[1], p.gates[2], p.gates[3], p.R, p.bias, p.group_norm);
  r("feed_forward", p.ffn_norm, p.up_weight, p.up_bias, p.down_weight, p.down_bias);
  r("before", p.held, p.state)("after", p.window, p.state_last)("y", p.y);
}

template <typename Real>
void mlstm_block_step(const MlstmBlockStep<Real>& p, int threads);
template <typename Real>
void slstm_block_step(const SlstmBlockStep<Real>& p, int threads);

// Working memory between the parts of a step. The mLSTM's: qkv (B, 3, I), i and f (B, NH). The sLSTM's c is its convolution.
template <typename Real>
struct MlstmBlockMemory {
  Real *normed, *up, *c, *q, *k, *v, *qkv, *i, *f, *h, *inner;
};
template <typename Real>
struct SlstmBlockMemory {
  Real *normed, *c, *raw, *recurrent, *mixed, *up, *inner;  // (B, D), (B, D), (B, 4, D), (B, 4, D), (B, D), (B, 2 F), (B, F)
};

// The parts, compiled once per instruction set: for row b, or for outputs [first, end) of all rows.
// clang-format off
XLSTM_IN_EVERY_ISA(
  template <typename Real> void linear(const Linear<Real>& p, int64_t first, int64_t end);
  template <typename Real> void norm_row(const Real* x, const Real* weight, Real eps, int64_t D, Real* y);
  template <typename Real>
  void mlstm_block_inputs(const MlstmBlockStep<Real>& p, const MlstmBlockMemory<Real>& memory, int64_t b);
  template <typename Real>
  void mlstm_block_output(const MlstmBlockStep<Real>& p, const MlstmBlockMemory<Real>& memory, int64_t b);
  template <typename Real> void slstm_block_cell(const SlstmBlockStep<Real>& p, const SlstmBlockMemory<Real>& memory, int64_t b);
  template <typename Real> void gated(const Real* up, int64_t F, Real* inner);
)
// clang-format on

}  // namespace xlstm::cpu
