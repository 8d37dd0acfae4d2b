// mlstm_layer_segment.cpp - the passes of mlstm_layer.h over some steps of a row, compiled once per instruction set (XLSTM_ISA
// names the namespace). A segment is walked in tiles of steps whose working memory stays in the second-level cache. In backward
// a tile computes the K - 1 steps behind it as well, because its inputs' gradients need them.
#include <algorithm>

#include "cpu/layer_rows.h"
#include "cpu/mlstm_layer.h"
#include "cpu/scratch.h"

namespace xlstm::cpu {
namespace {

// Steps of a tile: its five arrays of I features fit into half of a second-level cache of 1 MiB.
template <typename Real>
int64_t tile_steps(const MlstmLayer<Real>& p) {
  const int64_t fit = (int64_t(512) << 10) / (5 * p.I * static_cast<int64_t>(sizeof(Real)));
  return std::clamp<int64_t>(fit / 4 * 4, 8, 64);
}

// Features of a block of q, k, v as it is multiplied: narrow ones are joined to a vector, with zeros beside them.
template <typename Real>
int64_t joined(const MlstmLayer<Real>& p) {
  return std::max<int64_t>(p.width, kLanes<Real>);
}
template <typename Real>
int64_t padded_gates(const MlstmLayer<Real>& p) {
  return whole_vectors<Real>(2 * p.NH);
}

enum Projection { kQ, kK, kV, kProjections };

// Where the packed weights lie.
template <typename Real>
struct Packed {
  const MlstmLayer<Real>& p;
  const int64_t J = joined(p), G = padded_gates(p), I = p.I;

  explicit Packed(const MlstmLayer<Real>& p) : p(p) {}
  int64_t taps() const { return 0; }                                        // (K, I)
  int64_t forward(int which) const { return p.K * I + 2 * which * I * J; }  // (I / J, J in, J out)
  int64_t backward(int which) const { return forward(which) + I * J; }      // (I / J, J out, J in)
  int64_t gates() const { return p.K * I + 2 * kProjections * I * J; }      // (3 I, G)
  int64_t gate_rows() const { return gates() + kProjections * I * G; }      // (2 NH, 3 I)
  int64_t size() const { return gate_rows() + 2 * p.NH * kProjections * I; }
};

// Where the sums of a segment lie.
template <typename Real>
struct Sums {
  const MlstmLayer<Real>& p;
  const int64_t J = joined(p), I = p.I, gates = 2 * p.NH;

  explicit Sums(const MlstmLayer<Real>& p) : p(p) {}
  int64_t taps() const { return 0; }                                              // (K, I)
  int64_t conv_bias() const { return p.K * I; }                                   // (I)
  int64_t weight(int which) const { return (p.K + 1) * I + which * I * J; }       // (I / J, J out, J in)
  int64_t bias(int which) const { return weight(kProjections) + which * I; }      // (I)
  int64_t gate_weight() const { return bias(kProjections); }                      // (2 NH, 3 I)
  int64_t gate_bias() const { return gate_weight() + gates * kProjections * I; }  // (2 NH)
  int64_t size() const { return whole_vectors<Real>(gate_bias() + gates); }
};

template <typename Real>
const Real* weight_of(const MlstmLayer<Real>& p, int which) {
  return which == kQ ? p.q_weight : which == kK ? p.k_weight : p.v_weight;
}
template <typename Real>
const Real* bias_of(const MlstmLayer<Real>& p, int which) {
  return which == kQ ? p.q_bias : which == kK ? p.k_bias : p.v_bias;
}

// The inputs that a step's convolution sees, oldest first; null ones are zero.
template <typename Real>
struct Window {
  const Real* input[kMostTaps];

  Window(const MlstmLayer<Real>& p, int64_t b, int64_t t) {
    bool seen = true;
    for (int64_t j = p.K - 1, from = t; j >= 0; --j, --from) {
      input[j] = !seen       ? nullptr
                 : from >= 0 ? p.up.data + b * p.up.batch + from * p.up.step
                 : p.held    ? p.held + (b * (p.K - 1) + p.K - 1 + from) * p.I
                             : nullptr;
      if (from >= 0 && starts(p, b, from)) seen = false;
    }
  }
  static bool starts(const MlstmLayer<Real>& p, int64_t b, int64_t t) {
    return p.starts.data && p.starts.data[b * p.starts.batch + t * p.starts.step];
  }
  XLSTM_DEVICE Vector<Real> convolved(const MlstmLayer<Real>& p, const Real* taps, int64_t d) const {
    Vector<Real> sum = load(p.conv_bias + d);
    for (int64_t j = 0; j < p.K; ++j) {
      if (input[j]) sum += load(taps + j * p.I + d) * load(input[j] + d);
    }
    return sum;
  }
};

template <typename Real>
const Real* a_of(const MlstmLayer<Real>& p, int64_t b, int64_t t) {
  return p.up.data + b * p.up.batch + t * p.up.step;
}

// out (rows, I) = x (rows, I) times a block-diagonal matrix, then finish(row, column, vector of it).
template <typename Real, typename Finish>
XLSTM_DEVICE void block_diagonal(int64_t rows, int64_t I, int64_t J, const Real* x, int64_t ldx, const Real* W, Real* out,
                                 int64_t ldo, const Finish& finish) {
  for (int64_t block = 0; block < I; block += J) {
    tiles<Real>(rows, J, nothing, [&](auto tile, int64_t row, int64_t column) {
      tile.template product<Order::kRows>(x + row * ldx + block, ldx, W + block * J + column, J, J);
      tile.each([&](int y, int v, Vector<Real>& sum) { finish(row + y, block + column + v * kLanes<Real>, sum); });
      tile.write(out + row * ldo + block + column, ldo);
    });
  }
}

// sums (rows, columns) += x^T y over `steps`.
template <typename Real>
XLSTM_DEVICE void add_outer(int64_t rows, int64_t columns, int64_t steps, const Real* x, int64_t ldx, const Real* y, int64_t ldy,
                            Real* sums, int64_t lds) {
  tiles<Real>(rows, columns, nothing, [&](auto tile, int64_t row, int64_t column) {
    tile.template product<Order::kColumns>(x + row, ldx, y + column, ldy, steps);
    Real* const to = sums + row * lds + column;
    tile.each([&](int r, int v, Vector<Real>& sum) { sum += load(to + r * lds + v * kLanes<Real>); });
    tile.write(to, lds);
  });
}

template <typename Real>
XLSTM_DEVICE void add_rows(int64_t rows, int64_t columns, const Real* x, int64_t ldx, Real* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t d = 0; d < columns; ++d) sums[d] += x[row * ldx + d];
  }
}

// c = SiLU(conv(a)) of some steps, and the slope of SiLU where it is wanted.
template <typename Real>
void activations(const MlstmLayer<Real>& p, const Real* taps, int64_t b, int64_t first, int64_t rows, Real* c, Real* slope) {
  for (int64_t row = 0; row < rows; ++row) {
    const Window<Real> window(p, b, first + row);
    for (int64_t d = 0; d < p.I; d += kLanes<Real>) {
      const Vector<Real> x = window.convolved(p, taps, d), s = sigmoid<Real>(x);
      store(c + row * p.I + d, x * s);
      if (slope) store(slope + row * p.I + d, s * (Real(1) + x * (Real(1) - s)));
    }
  }
}

template <typename Real>
void inputs_of_tile(const MlstmLayerInputs<Real>& pass, int64_t b, int64_t first, int64_t rows, const Real* packed, Real* c,
                    Real* gates) {
  const MlstmLayer<Real>& p = pass.layer;
  const Packed<Real> at(p);
  const int64_t I = p.I, NH = p.NH, token = b * p.S + first;
  activations<Real>(p, packed + at.taps(), b, first, rows, c, nullptr);
  Real* const results[] = {pass.q + token * I, pass.k + token * I, pass.v + token * I};
  for (int which = 0; which < kProjections; ++which) {
    const Real* const bias = bias_of(p, which);
    const bool of_a = which == kV;
    block_diagonal<Real>(rows, I, at.J, of_a ? a_of(p, b, first) : c, of_a ? p.up.step : I, packed + at.forward(which),
                         results[which], I, [&](int64_t, int64_t d, Vector<Real>& y) {
                           if (bias) y += load(bias + d);
                         });
  }
  tiles<Real>(rows, at.G, nothing, [&](auto tile, int64_t row, int64_t column) {
    for (int which = 0; which < kProjections; ++which) {
      tile.template product<Order::kRows>(results[which] + row * I, I, packed + at.gates() + which * I * at.G + column, at.G, I);
    }
    tile.write(gates + row * at.G + column, at.G);
  });
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < NH; ++head) {
      pass.i[(token + row) * NH + head] = gates[row * at.G + head] + p.i_bias[head];
      pass.f[(token + row) * NH + head] = gates[row * at.G + NH + head] + p.f_bias[head];
    }
  }
  for (int64_t d = 0; d < rows * I; ++d) results[kK][d] *= p.k_scale;
}

// The gradients of q, k, v through the gates and of their own, for one projection: out = own scale + dG W.
template <typename Real>
void with_gates(int64_t rows, int64_t I, int64_t gates, const Real* dgates, const Real* W, const Real* own, Real scale,
                Real* out) {
  tiles<Real>(rows, I, nothing, [&](auto tile, int64_t row, int64_t column) {
    tile.template product<Order::kRows>(dgates + row * gates, gates, W + column, kProjections * I, gates);
    tile.each([&](int y, int v, Vector<Real>& sum) { sum += scale * load(own + (row + y) * I + column + v * kLanes<Real>); });
    tile.write(out + row * I + column, I);
  });
}

// Working memory of a tile of the inputs' backward pass.
template <typename Real>
struct TileMemory {
  Real *dgates, *d[kProjections], *c, *slope, *dconv;

  TileMemory(Scratch& scratch, int64_t rows, int64_t I, int64_t gates) {
    dgates = scratch.take<Real>(rows * gates);
    for (Real** array : {&d[kQ], &d[kK], &d[kV], &c, &slope}) *array = scratch.take<Real>(rows * I);
    dconv = slope;  // the slope is multiplied into it
  }
};

template <typename Real>
void inputs_backward_of_tile(const MlstmLayerInputsBackward<Real>& pass, int64_t b, int64_t first, int64_t own,
                             const Real* packed, const TileMemory<Real>& memory, Real* sums) {
  const MlstmLayer<Real>& p = pass.layer;
  const Packed<Real> at(p);
  const Sums<Real> sum(p);
  const int64_t I = p.I, J = at.J, NH = p.NH, gates = 2 * NH, token = b * p.S + first;
  const int64_t rows = std::min(own + p.K - 1, p.S - first);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t head = 0; head < NH; ++head) {
      memory.dgates[row * gates + head] = pass.di[(token + row) * NH + head];
      memory.dgates[row * gates + NH + head] = pass.df[(token + row) * NH + head];
    }
  }
  const Real* const incoming[] = {pass.dq + token * I, pass.dk + token * I, pass.dv + token * I};
  const Real* const values[] = {pass.q + token * I, pass.k + token * I, pass.v + token * I};
  for (int which = 0; which < kProjections; ++which) {
    with_gates<Real>(which == kV ? own : rows, I, gates, memory.dgates, packed + at.gate_rows() + which * I, incoming[which],
                     which == kK ? p.k_scale : Real(1), memory.d[which]);
  }
  activations<Real>(p, packed + at.taps(), b, first, rows, memory.c, memory.slope);

  // dconv = slope (dq_c + dk_c + skip dy SiLU(g)); every sum of a block is complete before its slope is overwritten.
  for (int64_t block = 0; block < I; block += J) {
    tiles<Real>(rows, J, nothing, [&](auto tile, int64_t row, int64_t column) {
      for (const int which : {kQ, kK}) {
        tile.template product<Order::kRows>(memory.d[which] + row * I + block, I,
                                            packed + at.backward(which) + block * J + column, J, J);
      }
      tile.each([&](int y, int v, Vector<Real>& dc) {
        const int64_t d = block + column + v * kLanes<Real>, t = row + y;
        const Vector<Real> g = load(a_of(p, b, first + t) + I + d);
        dc += load(p.skip + d) * load(pass.dy + (token + t) * I + d) * (g * sigmoid<Real>(g));
        dc *= load(memory.slope + t * I + d);
      });
      tile.write(memory.dconv + row * I + block + column, I);
    });
    for (int which = 0; which < kProjections; ++which) {
      const bool of_a = which == kV;
      add_outer<Real>(J, J, own, memory.d[which] + block, I, (of_a ? a_of(p, b, first) : memory.c) + block, of_a ? p.up.step : I,
                      sums + sum.weight(which) + block * J, J);
    }
  }
  for (int which = 0; which < kProjections; ++which) {
    if (bias_of(p, which)) add_rows(own, I, memory.d[which], I, sums + sum.bias(which));
    add_outer<Real>(gates, I, own, memory.dgates, gates, values[which], I, sums + sum.gate_weight() + which * I,
                    kProjections * I);
  }
  add_rows(own, gates, memory.dgates, gates, sums + sum.gate_bias());
  add_rows(own, I, memory.dconv, I, sums + sum.conv_bias());

  Real* const da = pass.dup + token * 2 * I;
  block_diagonal<Real>(own, I, J, memory.d[kV], I, packed + at.backward(kV), da, 2 * I, [](int64_t, int64_t, Vector<Real>&) {});
  for (int64_t row = 0; row < rows; ++row) {  // step by step, every input in the order of the steps that saw it
    const Window<Real> window(p, b, first + row);
    const Real* const dconv = memory.dconv + row * I;
    for (int64_t j = 0; j < p.K; ++j) {
      const int64_t from = row - (p.K - 1 - j);  // of the tile
      if (!window.input[j]) continue;
      // An input of this tile, or one held before the first step; others belong to the tiles beside.
      Real* to = from >= 0 && from < own ? da + from * 2 * I : nullptr;
      if (pass.dheld && first + from < 0) to = pass.dheld + (b * (p.K - 1) + p.K - 1 + from) * I;
      const Real* const tap = packed + at.taps() + j * I;
      if (to) {
        for (int64_t d = 0; d < I; d += kLanes<Real>) store(to + d, load(to + d) + load(tap + d) * load(dconv + d));
      }
      if (row < own) {
        Real* const dtap = sums + sum.taps() + j * I;
        const Real* const input = window.input[j];
        for (int64_t d = 0; d < I; d += kLanes<Real>) store(dtap + d, load(dtap + d) + load(input + d) * load(dconv + d));
      }
    }
  }
}

// sums[0] += sums[1], sums[2], ...
template <typename Real>
void total(int64_t segments, int64_t size, Real* sums) {
  for (int64_t segment = 1; segment < segments; ++segment) {
    for (int64_t at = 0; at < size; ++at) sums[at] += sums[segment * size + at];
  }
}

template <typename Real>
void run(const MlstmLayerInputs<Real>& pass, const Segment& segment, const Real* packed, Real*) {
  const MlstmLayer<Real>& p = pass.layer;
  const int64_t T = tile_steps(p);
  Scratch scratch;
  Real *const c = scratch.take<Real>(T * p.I), *const gates = scratch.take<Real>(T * padded_gates(p));
  for (int64_t first = segment.first; first < segment.end; first += T) {
    inputs_of_tile(pass, segment.b, first, std::min(T, segment.end - first), packed, c, gates);
  }
}

template <typename Real>
void run(const MlstmLayerOutput<Real>& pass, const Segment& segment, const Real* packed, Real*) {
  const MlstmLayer<Real>& p = pass.layer;
  const int64_t I = p.I, DH = I / p.NH, lanes = kLanes<Real>;
  for (int64_t t = segment.first; t < segment.end; ++t) {
    const Window<Real> window(p, segment.b, t);
    const Real *const h = pass.h + (segment.b * p.S + t) * I, *const g = a_of(p, segment.b, t) + I;
    Real* const y = pass.y + (segment.b * p.S + t) * I;
    for (int64_t head = 0; head < I; head += DH) {
      const Moments<Real> moments(h + head, DH, p.norm_eps);
      for (int64_t d = head; d < head + DH; d += lanes) {
        const Vector<Real> x = window.convolved(p, packed, d), gate = load(g + d);
        Vector<Real> normed = moments.of(load(h + d));
        if (p.norm_weight) normed += normed * load(p.norm_weight + d);
        store(y + d, (normed + load(p.skip + d) * (x * sigmoid<Real>(x))) * (gate * sigmoid<Real>(gate)));
      }
    }
  }
}

template <typename Real>
int64_t size_of_sums(const MlstmLayerOutputBackward<Real>& p) {
  return 2 * p.layer.I;
}

template <typename Real>
void run(const MlstmLayerOutputBackward<Real>& pass, const Segment& segment, const Real* packed, Real* sums) {
  const MlstmLayer<Real>& p = pass.layer;
  const int64_t I = p.I, DH = I / p.NH, lanes = kLanes<Real>;
  std::fill(sums, sums + 2 * I, Real(0));
  Real *const dweight = sums, *const dskip = sums + I;
  for (int64_t t = segment.first; t < segment.end; ++t) {
    const Window<Real> window(p, segment.b, t);
    const int64_t token = segment.b * p.S + t;
    const Real *const h = pass.h + token * I, *const dy = pass.dy + token * I, *const g = a_of(p, segment.b, t) + I;
    Real *const dh = pass.dh + token * I, *const dg = pass.dup + (2 * token + 1) * I;
    for (int64_t head = 0; head < I; head += DH) {
      const Moments<Real> moments(h + head, DH, p.norm_eps);
      Vector<Real> sum = {}, product = {};  // of the gradient of the normed head, and with it
      for (int64_t d = head; d < head + DH; d += lanes) {
        const Vector<Real> x = window.convolved(p, packed, d), c = x * sigmoid<Real>(x);
        const Vector<Real> gate = load(g + d), s = sigmoid<Real>(gate), given = load(dy + d);
        const Vector<Real> normed = moments.of(load(h + d)), dinner = given * gate * s;
        Vector<Real> scaled = normed, dnormed = dinner;
        if (p.norm_weight) {
          scaled += normed * load(p.norm_weight + d);
          dnormed += dinner * load(p.norm_weight + d);
        }
        store(dg + d, given * (scaled + load(p.skip + d) * c) * (s * (Real(1) + gate * (Real(1) - s))));
        store(dweight + d, load(dweight + d) + dinner * normed);
        store(dskip + d, load(dskip + d) + dinner * c);
        store(dh + d, dnormed);
        sum += dnormed;
        product += dnormed * normed;
      }
      const Vector<Real> mean = sum_across<Real>(sum) / static_cast<Real>(DH);
      const Vector<Real> slope = sum_across<Real>(product) / static_cast<Real>(DH);
      for (int64_t d = head; d < head + DH; d += lanes) {
        store(dh + d, moments.inverse * (load(dh + d) - mean - moments.of(load(h + d)) * slope));
      }
    }
  }
}

template <typename Real>
void finish(const MlstmLayerOutputBackward<Real>& pass, int64_t segments, Real* sums) {
  const int64_t I = pass.layer.I;
  total(segments, 2 * I, sums);
  std::copy(sums, sums + I, pass.dnorm_weight);
  std::copy(sums + I, sums + 2 * I, pass.dskip);
}

template <typename Real>
int64_t size_of_sums(const MlstmLayerInputsBackward<Real>& p) {
  return Sums<Real>(p.layer).size();
}

template <typename Real>
void run(const MlstmLayerInputsBackward<Real>& pass, const Segment& segment, const Real* packed, Real* sums) {
  const MlstmLayer<Real>& p = pass.layer;
  const int64_t T = tile_steps(p);
  std::fill(sums, sums + Sums<Real>(p).size(), Real(0));
  Scratch scratch;
  const TileMemory<Real> memory(scratch, T + p.K - 1, p.I, 2 * p.NH);
  for (int64_t first = segment.first; first < segment.end; first += T) {
    inputs_backward_of_tile(pass, segment.b, first, std::min(T, segment.end - first), packed, memory, sums);
  }
}

template <typename Real>
void finish(const MlstmLayerInputsBackward<Real>& pass, int64_t segments, Real* sums) {
  const MlstmLayer<Real>& p = pass.layer;
  const Sums<Real> at(p);
  const int64_t I = p.I, J = at.J, w = p.width, K = p.K;
  total(segments, at.size(), sums);
  for (int64_t d = 0; d < I; ++d) {
    for (int64_t j = 0; j < K; ++j) pass.dconv_weight[d * K + j] = sums[at.taps() + j * I + d];
    pass.dconv_bias[d] = sums[at.conv_bias() + d];
  }
  Real* const weights[] = {pass.dq_weight, pass.dk_weight, pass.dv_weight};
  Real* const biases[] = {pass.dq_bias, pass.dk_bias, pass.dv_bias};
  for (int which = 0; which < kProjections; ++which) {
    for (int64_t out = 0; out < I; ++out) {
      const int64_t block = out / J * J, first = out / w * w;
      const Real* const row = sums + at.weight(which) + block * J + (out - block) * J + first - block;
      std::copy(row, row + w, weights[which] + out * w);
    }
    if (biases[which]) std::copy(sums + at.bias(which), sums + at.bias(which) + I, biases[which]);
  }
  for (int64_t gate = 0; gate < 2 * p.NH; ++gate) {
    Real* const row = gate < p.NH ? pass.di_weight + gate * 3 * I : pass.df_weight + (gate - p.NH) * 3 * I;
    for (int which = 0; which < kProjections; ++which) {
      const Real scale = which == kK ? Real(1) / p.k_scale : Real(1);  // k was multiplied after the gates had read it
      const Real* const from = sums + at.gate_weight() + (gate * kProjections + which) * I;
      for (int64_t d = 0; d < I; ++d) row[which * I + d] = scale * from[d];
    }
    (gate < p.NH ? pass.di_bias[gate] : pass.df_bias[gate - p.NH]) = sums[at.gate_bias() + gate];
  }
}

}  // namespace

namespace XLSTM_ISA {

template <typename Real>
int64_t packed_size(const MlstmLayer<Real>& p) {
  return Packed<Real>(p).size();
}

// Into zeros, which narrow blocks keep beside them.
template <typename Real>
void pack(const MlstmLayer<Real>& p, Weights reads, Real* packed) {
  const Packed<Real> at(p);
  const int64_t I = p.I, J = at.J, G = at.G, w = p.width;
  for (int64_t d = 0; d < I; ++d) {
    for (int64_t j = 0; j < p.K; ++j) packed[at.taps() + j * I + d] = p.conv_weight[d * p.K + j];
  }
  if (reads == Weights::kTaps) return;
  const bool forward = reads == Weights::kForward;
  for (int which = 0; which < kProjections; ++which) {
    const Real* const W = weight_of(p, which);
    Real* const to = packed + (forward ? at.forward(which) : at.backward(which));
    for (int64_t out = 0; out < I; ++out) {
      const int64_t block = out / J * J, first = out / w * w;  // of the joined block, and of the weight's own
      for (int64_t in = first; in < first + w; ++in) {
        to[block * J + (forward ? (in - block) * J + out - block : (out - block) * J + in - block)] = W[out * w + in - first];
      }
    }
  }
  for (int64_t gate = 0; gate < 2 * p.NH; ++gate) {
    const Real* const row = gate < p.NH ? p.i_weight + gate * 3 * I : p.f_weight + (gate - p.NH) * 3 * I;
    for (int64_t d = 0; d < 3 * I; ++d) packed[forward ? at.gates() + d * G + gate : at.gate_rows() + gate * 3 * I + d] = row[d];
  }
}

template <typename Pass>
void layer_segment(const Pass& p, const Segment& segment, const NumberOf<Pass>* packed, NumberOf<Pass>* sums) {
  run(p, segment, packed, sums);
}
template <typename Pass>
int64_t sums_size(const Pass& p) {
  return size_of_sums(p);
}
template <typename Pass>
void add_up(const Pass& p, int64_t segments, NumberOf<Pass>* sums) {
  finish(p, segments, sums);
}

#define XLSTM_PASS(Pass, Real) template void layer_segment(const Pass<Real>&, const Segment&, const Real*, Real*);
#define XLSTM_PASS_WITH_SUMS(Pass, Real)         \
  XLSTM_PASS(Pass, Real)                         \
  template int64_t sums_size(const Pass<Real>&); \
  template void add_up(const Pass<Real>&, int64_t, Real*);
#define XLSTM_MLSTM_LAYER_OF(Real)                             \
  template int64_t packed_size(const MlstmLayer<Real>&);       \
  template void pack(const MlstmLayer<Real>&, Weights, Real*); \
  XLSTM_PASS(MlstmLayerInputs, Real)                           \
  XLSTM_PASS(MlstmLayerOutput, Real)                           \
  XLSTM_PASS_WITH_SUMS(MlstmLayerOutputBackward, Real)         \
  XLSTM_PASS_WITH_SUMS(MlstmLayerInputsBackward, Real)
XLSTM_MLSTM_LAYER_OF(float)
XLSTM_MLSTM_LAYER_OF(double)

}  // namespace XLSTM_ISA
}  // namespace xlstm::cpu
