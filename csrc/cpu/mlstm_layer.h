// mlstm_layer.h - what surrounds the recurrence in an mLSTM layer, in two passes each way over tiles of steps. What is cheap
// is not kept but computed once more: backward reads (a, g), the recurrence's operands made anew from them, and h.
//   c = SiLU(conv(a));  q, k = blockdiag(c);  v = blockdiag(a);  i, f = Linear(q, k, v);  k times k_scale       (inputs)
//   y = (norm(h) (1 + norm_weight) + skip c) SiLU(g)                                                           (output)
#pragma once
#include <cstdint>

#include "common/view.h"
#include "cpu/isa.h"

namespace xlstm::cpu {

// The weights lie as their modules have them. I features are whole vectors, and so are the features of a head; `width`, the
// features of a block of q, k and v, is a power of two.
template <typename Real>
struct MlstmLayer {
  int64_t B = 0, S = 0, I = 0, NH = 0, K = 0, width = 0;
  View<const Real> up;                                      // (B, S, 2 I): a, then g
  View<const uint8_t> starts;                               // (B, S), 1 where the convolution begins anew; or null
  const Real* held = nullptr;                               // (B, K - 1, I), the inputs before the first step; or null for zeros
  const Real *conv_weight = nullptr, *conv_bias = nullptr;  // (I, K), (I)
  const Real *q_weight = nullptr, *k_weight = nullptr, *v_weight = nullptr;                   // (I / width, width out, width in)
  const Real *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;                         // (I), or null
  const Real *i_weight = nullptr, *f_weight = nullptr, *i_bias = nullptr, *f_bias = nullptr;  // (NH, 3 I), (NH)
  const Real *norm_weight = nullptr, *skip = nullptr;                                         // (I); the first may be null
  Real k_scale = 1, norm_eps = 0;
};
template <class R, typename Real>
void read(R& r, MlstmLayer<Real>& p) {
  r("B", p.B)("S", p.S)("I", p.I)("NH", p.NH)("K", p.K)("width", p.width)("up", p.up)("starts", p.starts)("held", p.held);
  r("conv_weight", p.conv_weight)("conv_bias", p.conv_bias);
  r("q_weight", p.q_weight)("k_weight", p.k_weight)("v_weight", p.v_weight);
  r("q_bias", p.q_bias)("k_bias", p.k_bias)("v_bias", p.v_bias);
  r("i_weight", p.i_weight)("f_weight", p.f_weight)("i_bias", p.i_bias)("f_bias", p.f_bias);
  r("norm_weight", p.norm_weight)("skip", p.skip)("k_scale", p.k_scale)("norm_eps", p.norm_eps);
}

// What a pass reads of the packed weights: the taps, and q, k, v and the gates in one direction or the other.
enum class Weights { kTaps, kForward, kBackward };

// What all passes have. kSums: it makes gradients of weights, summed over the steps.
template <typename Real, Weights reads, bool sums>
struct MlstmLayerPass {
  using Number = Real;
  static constexpr Weights kReads = reads;
  static constexpr bool kSums = sums;
  MlstmLayer<Real> layer;
};

// All results are contiguous.
template <typename Real>
struct MlstmLayerInputs : MlstmLayerPass<Real, Weights::kForward, false> {
  Real *q = nullptr, *k = nullptr, *v = nullptr, *i = nullptr, *f = nullptr;  // (B, S, I), (B, S, NH)
};
template <class R, typename Real>
void read(R& r, MlstmLayerInputs<Real>& p) {
  read(r, p.layer);
  r("q", p.q)("k", p.k)("v", p.v)("i", p.i)("f", p.f);
}

template <typename Real>
struct MlstmLayerOutput : MlstmLayerPass<Real, Weights::kTaps, false> {
  const Real* h = nullptr;  // (B, S, I)
  Real* y = nullptr;        // (B, S, I)
};
template <class R, typename Real>
void read(R& r, MlstmLayerOutput<Real>& p) {
  read(r, p.layer);
  r("h", p.h)("y", p.y);
}

// The output's gradients: of h, of g, and of the two weights.
template <typename Real>
struct MlstmLayerOutputBackward : MlstmLayerPass<Real, Weights::kTaps, true> {
  const Real *h = nullptr, *dy = nullptr;          // (B, S, I)
  Real *dh = nullptr, *dup = nullptr;              // (B, S, I), (B, S, 2 I) of which the half of g is written
  Real *dnorm_weight = nullptr, *dskip = nullptr;  // (I)
};
template <class R, typename Real>
void read(R& r, MlstmLayerOutputBackward<Real>& p) {
  read(r, p.layer);
  r("h", p.h)("dy", p.dy)("dh", p.dh)("dup", p.dup)("dnorm_weight", p.dnorm_weight)("dskip", p.dskip);
}

// The inputs' gradients: of a, through q, k, v, i, f and through the skip of the output; of the held inputs and the weights.
template <typename Real>
struct MlstmLayerInputsBackward : MlstmLayerPass<Real, Weights::kBackward, true> {
  const Real *q = nullptr, *k = nullptr, *v = nullptr;  // as the forward left them
  const Real *dq = nullptr, *dk = nullptr, *dv = nullptr, *di = nullptr, *df = nullptr, *dy = nullptr;
  Real* dup = nullptr;    // (B, S, 2 I), of which the half of a is written
  Real* dheld = nullptr;  // (B, K - 1, I), or null
  Real *dconv_weight = nullptr, *dconv_bias = nullptr;
  Real *dq_weight = nullptr, *dk_weight = nullptr, *dv_weight = nullptr;
  Real *dq_bias = nullptr, *dk_bias = nullptr, *dv_bias = nullptr;  // (I), or null
  Real *di_weight = nullptr, *df_weight = nullptr, *di_bias = nullptr, *df_bias = nullptr;
};
template <class R, typename Real>
void read(R& r, MlstmLayerInputsBackward<Real>& p) {
  read(r, p.layer);
  r("q", p.q)("k", p.k)("v", p.v)("dq", p.dq)("dk", p.dk)("dv", p.dv)("di", p.di)("df", p.df)("dy", p.dy);
  r("dup", p.dup)("dheld", p.dheld)("dconv_weight", p.dconv_weight)("dconv_bias", p.dconv_bias);
  r("dq_weight", p.dq_weight)("dk_weight", p.dk_weight)("dv_weight", p.dv_weight);
  r("dq_bias", p.dq_bias)("dk_bias", p.dk_bias)("dv_bias", p.dv_bias);
  r("di_weight", p.di_weight)("df_weight", p.df_weight)("di_bias", p.di_bias)("df_bias", p.df_bias);
}

template <typename Pass>
void mlstm_layer(const Pass& pass, int threads);

// Steps [first, end) of row b.
struct Segment {
  int64_t b, first, end;
};

constexpr int64_t kMostTaps = 8;  // K at most

template <typename Pass>
using NumberOf = typename Pass::Number;

// One compilation for an instruction set. `packed` are the weights as its vectors like them. In backward every segment has sums
// of its own, and `add_up` makes gradients of them in order, so that the bits do not depend on the threads.
// clang-format off
XLSTM_IN_EVERY_ISA(
  template <typename Real> int64_t packed_size(const MlstmLayer<Real>& p);
  template <typename Real> void pack(const MlstmLayer<Real>& p, Weights reads, Real* packed);
  template <typename Pass>
  void layer_segment(const Pass& p, const Segment& segment, const NumberOf<Pass>* packed, NumberOf<Pass>* sums);
  template <typename Pass> int64_t sums_size(const Pass& p);
  template <typename Pass> void add_up(const Pass& p, int64_t segments, NumberOf<Pass>* sums);
)
// clang-format on

}  // namespace xlstm::cpu
