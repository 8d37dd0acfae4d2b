// slstm.cpp - cuts the recurrence into tiles (some rows of one head), picks the instruction set, runs the tiles on threads.
#include "cpu/slstm.h"

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/slstm_kernels.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kMostRows = 8;              // rows of a tile share every load of R
constexpr int64_t kWorthThreads = 1'000'000;  // products; fewer are done before another thread has woken up

template <typename Real>
struct FreeAligned {
  void operator()(Real* numbers) const { ::operator delete[](numbers, std::align_val_t{64}); }
};
template <typename Real>
std::unique_ptr<Real[], FreeAligned<Real>> aligned(int64_t count) {
  return std::unique_ptr<Real[], FreeAligned<Real>>(
      static_cast<Real*>(::operator new[](count * sizeof(Real), std::align_val_t{64})));
}

template <typename Real>
bool packs(const slstm::ForwardParams<Real, Real>& p) {
  return !p.single_step;
}
template <typename Real>
bool packs(const slstm::BackwardParams<Real, Real>&) {
  return true;
}

template <typename Real, typename Params, typename Kernels>
void launch(const Params& p, const Kernels& kernels, int threads) {
  const slstm::Shape& shape = p.shape;
  if (shape.B == 0 || shape.NH == 0 || shape.DH == 0) return;
  const int64_t P = padded_units(shape.DH);
  const int64_t steps = shape.S * (shape.cu_seqlens ? 1 : shape.B);
  if (steps * shape.NH * 4 * P * P < kWorthThreads) threads = 1;

  std::vector<int64_t> rows(shape.B);
  std::iota(rows.begin(), rows.end(), int64_t{0});
  if (shape.cu_seqlens) {
    const auto length = [&](int64_t row) { return shape.cu_seqlens[row + 1] - shape.cu_seqlens[row]; };
    std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
  }
  const int64_t wanted = std::max((shape.B + kMostRows - 1) / kMostRows, (threads + shape.NH - 1) / shape.NH);
  const int64_t tiles = std::min(wanted, shape.B);

  const bool pack = packs(p);
  const auto packed = aligned<Real>(pack ? shape.NH * 4 * P * P : 0);
  if (pack) parallel_for(shape.NH, threads, [&](int64_t head) { kernels.pack(p, head, packed.get() + head * 4 * P * P); });
  parallel_for(shape.NH * tiles, threads, [&](int64_t index) {
    const int64_t head = index % shape.NH, tile = index / shape.NH;
    const int64_t first = tile * shape.B / tiles, end = (tile + 1) * shape.B / tiles;
    const auto scratch = aligned<Real>(scratch_size(P, end - first));
    kernels.run(p, RowTile{head, rows.data() + first, end - first}, pack ? packed.get() + head * 4 * P * P : nullptr,
                scratch.get());
  });
}

}  // namespace

template <typename Real>
void slstm_forward(const slstm::ForwardParams<Real, Real>& p, int threads) {
  switch (selected_isa()) {
#ifdef XLSTM_X86_64
    case Isa::kAvx512:
      return launch<Real>(p, avx512::forward_kernels<Real>(), threads);
    case Isa::kAvx2:
      return launch<Real>(p, avx2::forward_kernels<Real>(), threads);
#endif
    default:
      return launch<Real>(p, baseline::forward_kernels<Real>(), threads);
  }
}

template <typename Real>
void slstm_backward(const slstm::BackwardParams<Real, Real>& p, int threads) {
  switch (selected_isa()) {
#ifdef XLSTM_X86_64
    case Isa::kAvx512:
      return launch<Real>(p, avx512::backward_kernels<Real>(), threads);
    case Isa::kAvx2:
      return launch<Real>(p, avx2::backward_kernels<Real>(), threads);
#endif
    default:
      return launch<Real>(p, baseline::backward_kernels<Real>(), threads);
  }
}

template <typename Real>
void slstm_recurrent_gradient(const SlstmRecurrentGradient<Real>& p, int threads) {
  auto* const task = XLSTM_OF_ISA(recurrent_gradient<Real>);
  if (p.tokens * 4 * p.NH * p.DH * p.DH < kWorthThreads) threads = 1;
  parallel_for(4 * p.NH, threads, [&](int64_t index) { task(p, index); });
}

template void slstm_recurrent_gradient(const SlstmRecurrentGradient<float>&, int);
template void slstm_recurrent_gradient(const SlstmRecurrentGradient<double>&, int);
template void slstm_forward(const slstm::ForwardParams<float, float>&, int);
template void slstm_forward(const slstm::ForwardParams<double, double>&, int);
template void slstm_backward(const slstm::BackwardParams<float, float>&, int);
template void slstm_backward(const slstm::BackwardParams<double, double>&, int);

}  // namespace xlstm::cpu
