// slstm_recurrence.h - all rows and heads of one call of the recurrence: cut into tiles (some rows of one head), R packed once,
// and run on threads over all steps or over the next few.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/slstm_kernels.h"
#include "cpu/threads.h"

namespace xlstm::cpu {

constexpr int64_t kMostRows = 8;              // rows of a tile share every load of R
constexpr int64_t kWorthThreads = 1'000'000;  // products; fewer are done before another thread has woken up

template <typename Real>
struct FreeAligned {
  void operator()(Real* numbers) const { ::operator delete[](numbers, std::align_val_t{64}); }
};
template <typename Real>
using Aligned = std::unique_ptr<Real[], FreeAligned<Real>>;
// `count` numbers, undefined, aligned to a cache line.
template <typename Real>
Aligned<Real> aligned(int64_t count) {
  return Aligned<Real>(static_cast<Real*>(::operator new[](count * sizeof(Real), std::align_val_t{64})));
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
class Recurrence {
 public:
  Recurrence(const Params& p, const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads), rows_(p.shape.B) {
    const slstm::Shape& shape = p.shape;
    if (shape.B == 0 || shape.NH == 0 || shape.DH == 0) return;
    const int64_t P = padded_units(shape.DH);
    const int64_t steps = shape.S * (shape.cu_seqlens ? 1 : shape.B);
    if (steps * shape.NH * 4 * P * P < kWorthThreads) threads_ = 1;

    std::iota(rows_.begin(), rows_.end(), int64_t{0});
    if (shape.cu_seqlens) {
      const auto length = [&](int64_t row) { return shape.cu_seqlens[row + 1] - shape.cu_seqlens[row]; };
      std::stable_sort(rows_.begin(), rows_.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    }
    const int64_t wanted = std::max((shape.B + kMostRows - 1) / kMostRows, (threads_ + shape.NH - 1) / shape.NH);
    tiles_ = std::min(wanted, shape.B);
    largest_scratch_ = scratch_size(P, (shape.B + tiles_ - 1) / tiles_);
    scratch_ = aligned<Real>(shape.NH * tiles_ * largest_scratch_);
    if (packs(p)) {
      packed_size_ = 4 * P * P;
      packed_ = aligned<Real>(shape.NH * packed_size_);
      parallel_for(shape.NH, threads_, [&](int64_t head) { kernels_.pack(p, head, packed_of(head)); });
    }
  }

  int threads() const { return threads_; }
  int64_t tasks(const Params& p) const { return p.shape.NH * tiles_; }

  // One tile over these steps; the tasks of the same steps may run at once.
  void task(const Params& p, const Steps& steps, int64_t index) const {
    const int64_t head = index % p.shape.NH, tile = index / p.shape.NH, B = p.shape.B;
    const int64_t first = tile * B / tiles_, end = (tile + 1) * B / tiles_;
    kernels_.run(p, RowTile{head, rows_.data() + first, end - first}, steps, packed_of(head),
                 scratch_.get() + index * largest_scratch_);
  }

  void run(const Params& p, const Steps& steps) const {
    parallel_for(tasks(p), threads_, [&](int64_t index) { task(p, steps, index); }, p.shape.cu_seqlens != nullptr);
  }

 private:
  Real* packed_of(int64_t head) const { return packed_ ? packed_.get() + head * packed_size_ : nullptr; }

  Kernels kernels_;
  int threads_;
  std::vector<int64_t> rows_;  // longest first
  int64_t tiles_ = 0, largest_scratch_ = 0, packed_size_ = 0;
  Aligned<Real> packed_, scratch_;
};

// The kernels of the instruction set in use.
template <typename Real>
ForwardKernels<Real> forward_kernels() {
  return XLSTM_OF_ISA(forward_kernels<Real>)();
}
template <typename Real>
BackwardKernels<Real> backward_kernels() {
  return XLSTM_OF_ISA(backward_kernels<Real>)();
}

template <typename Real>
using Forward = Recurrence<Real, slstm::ForwardParams<Real, Real>, ForwardKernels<Real>>;
template <typename Real>
using Backward = Recurrence<Real, slstm::BackwardParams<Real, Real>, BackwardKernels<Real>>;

}  // namespace xlstm::cpu
