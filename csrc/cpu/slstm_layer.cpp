// slstm_layer.cpp - input projection and recurrence by turns, some steps of all rows at a time.
//
// Forward: x = W input of these steps, then the recurrence over them. Backward, from the last steps to the first: the recurrence
// gives dx and h_prev of these steps, then dinput = W^T dx, dW += dx input^T, dR += dx h_prev^T. What is handed from one to the
// other stays in the second-level cache. How many steps these are depends on the shape alone, so no bits depend on threads.
#include "cpu/slstm_layer.h"

#include "cpu/projection.h"
#include "cpu/scratch.h"
#include "cpu/slstm_recurrence.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kCached = 512 * 1024;  // bytes of x of the steps between two products
constexpr int64_t kTokens = 64;          // of a task of a product
constexpr int64_t kUnits = 64;           // rows of W of a task of dW

// Some steps of all rows: token b * steps + s is step first + s of row b.
struct Slice {
  int64_t B, first, steps;

  int64_t tokens() const { return B * steps; }
  template <typename Element>
  Element* row(const View<Element>& x, int64_t token) const {
    return x.data + token / steps * x.batch + (first + token % steps) * x.step;
  }
};

template <typename Real>
int64_t steps_at_once(const slstm::Shape& s) {
  const int64_t bytes = s.B * 4 * s.NH * s.DH * static_cast<int64_t>(sizeof(Real));
  return std::min(s.S, std::max<int64_t>(kCached / bytes, 1));
}
int64_t pieces(int64_t count, int64_t of) { return (count + of - 1) / of; }

// to (tokens, F) = rows of the slice, close together.
template <typename Real>
void gather(const Slice& slice, const View<const Real>& x, int64_t F, int64_t token, int64_t count, Real* to) {
  for (int64_t i = 0; i < count; ++i) std::copy_n(slice.row(x, token + i), F, to + i * F);
}

}  // namespace

template <typename Real>
void slstm_layer_forward(const SlstmLayerForward<Real>& p, int threads) {
  const slstm::Shape& shape = p.cell.shape;
  const int64_t F = p.F, H = shape.NH * shape.DH, T = steps_at_once<Real>(shape);
  const Products<Real> products = XLSTM_OF_ISA(products<Real>)();
  const Forward<Real> recurrence(p.cell, forward_kernels<Real>(), threads);
  const auto W = aligned<Real>(4 * H * F), x = aligned<Real>(shape.B * T * 4 * H);
  products.pack_transposed(p.W, F, F, 4 * H, W.get());

  slstm::ForwardParams<Real, Real> cell = p.cell;
  cell.x_gate_stride = H;
  for (int64_t first = 0; first < shape.S; first += T) {
    const Slice slice{shape.B, first, std::min(T, shape.S - first)};
    parallel_for(pieces(slice.tokens(), kTokens), recurrence.threads(), [&](int64_t piece) {
      Scratch scratch;
      const int64_t token = piece * kTokens, count = std::min(kTokens, slice.tokens() - token);
      Real* const rows = scratch.take<Real>(kTokens * F);
      gather(slice, p.input, F, token, count, rows);
      products.product({rows, F, count, F, W.get(), 4 * H, x.get() + token * 4 * H, 4 * H});
    });
    cell.x = {x.get(), slice.steps * 4 * H, 4 * H, shape.DH};
    recurrence.run(cell, {first, first + slice.steps, first, slice.steps});
  }
}

template <typename Real>
void slstm_layer_backward(const SlstmLayerBackward<Real>& p, int threads) {
  const slstm::Shape& shape = p.cell.shape;
  const int64_t F = p.F, NH = shape.NH, DH = shape.DH, H = NH * DH, T = steps_at_once<Real>(shape), most = shape.B * T;
  const Products<Real> products = XLSTM_OF_ISA(products<Real>)();
  const Backward<Real> recurrence(p.cell, backward_kernels<Real>(), threads);
  const auto W = aligned<Real>(4 * H * F), dx = aligned<Real>(most * 4 * H), h_prev = aligned<Real>(most * H);
  const auto packed_input = aligned<Real>(most * F);
  products.pack(p.W, F, 4 * H, F, W.get());
  std::fill_n(p.dW, 4 * H * F, Real(0));
  std::fill_n(p.dR, 4 * H * DH, Real(0));

  slstm::BackwardParams<Real, Real> cell = p.cell;
  cell.dx = dx.get();
  cell.h_prev = h_prev.get();
  for (int64_t end = shape.S; end > 0; end -= T) {
    const int64_t first = std::max<int64_t>(end - T, 0);
    const Slice slice{shape.B, first, end - first};
    const int64_t tokens = slice.tokens(), tiles = recurrence.tasks(cell);
    parallel_for(tiles + 1, recurrence.threads(), [&](int64_t task) {
      if (task < tiles) return recurrence.task(cell, {first, end, first, slice.steps}, task);
      Scratch scratch;
      Real* const rows = scratch.take<Real>(tokens * F);
      gather(slice, p.input, F, 0, tokens, rows);
      products.pack(rows, F, tokens, F, packed_input.get());
    });

    const int64_t of_input = pieces(tokens, kTokens), of_W = pieces(4 * H, kUnits);
    parallel_for(of_input + of_W + NH, recurrence.threads(), [&](int64_t task) {
      Scratch scratch;
      if (task < of_input) {
        const int64_t token = task * kTokens, count = std::min(kTokens, tokens - token);
        Real* const rows = scratch.take<Real>(kTokens * F);
        products.product({dx.get() + token * 4 * H, 4 * H, count, 4 * H, W.get(), F, rows, F});
        const View<Real> dinput{p.dinput, shape.S * F, F, 0};
        for (int64_t i = 0; i < count; ++i) std::copy_n(rows + i * F, F, slice.row(dinput, token + i));
      } else if (task < of_input + of_W) {
        const int64_t unit = (task - of_input) * kUnits;
        products.add_outer(
            {dx.get() + unit, 4 * H, std::min(kUnits, 4 * H - unit), tokens, packed_input.get(), F, p.dW + unit * F, F});
      } else {
        const int64_t head = task - of_input - of_W;
        Real* const packed = scratch.take<Real>(tokens * DH);
        products.pack(h_prev.get() + head * DH, H, tokens, DH, packed);
        for (int64_t g = 0; g < 4; ++g) {
          const int64_t unit = g * H + head * DH;
          products.add_outer({dx.get() + unit, 4 * H, DH, tokens, packed, DH, p.dR + unit * DH, DH});
        }
      }
    });
  }
}

template void slstm_layer_forward(const SlstmLayerForward<float>&, int);
template void slstm_layer_forward(const SlstmLayerForward<double>&, int);
template void slstm_layer_backward(const SlstmLayerBackward<float>&, int);
template void slstm_layer_backward(const SlstmLayerBackward<double>&, int);

}  // namespace xlstm::cpu
