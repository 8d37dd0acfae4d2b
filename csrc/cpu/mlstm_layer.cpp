// mlstm_layer.cpp - picks the instruction set, packs the weights and runs the segments on threads.
#include "cpu/mlstm_layer.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/threads.h"

namespace xlstm::cpu {
namespace {

constexpr int64_t kWorthThreads = 100'000;  // numbers of a result; fewer are done before another thread has woken up
constexpr int64_t kShortest = 64, kSumsAtLeastFor = 128;  // steps of a segment; of one that keeps sums of all weights
constexpr int64_t kMostSegments = 64;                     // and no more of those, unless there are more rows

// Every row cut into equal segments, `most` at most.
class Segments {
 public:
  template <typename Real>
  Segments(const MlstmLayer<Real>& p, int64_t shortest, int64_t most) : B_(p.B), S_(p.S) {
    const int64_t wanted = std::clamp<int64_t>(S_ / shortest, 1, std::max<int64_t>(most, 1));
    length_ = ((S_ + wanted - 1) / wanted + kMostTaps - 1) / kMostTaps * kMostTaps;
    of_row_ = S_ > 0 ? (S_ + length_ - 1) / length_ : 0;
  }
  int64_t count() const { return B_ * of_row_; }
  Segment at(int64_t index) const {
    const int64_t first = index % of_row_ * length_;
    return {index / of_row_, first, std::min(first + length_, S_)};
  }

 private:
  int64_t B_, S_, length_, of_row_;
};

template <typename Real>
int threads_for(const MlstmLayer<Real>& p, int threads) {
  return p.B * p.S * p.I < kWorthThreads ? 1 : threads;
}

template <typename Pass>
std::vector<NumberOf<Pass>> packed_weights(const Pass& pass) {
  using Real = NumberOf<Pass>;
  std::vector<Real> packed(XLSTM_OF_ISA(packed_size<Real>)(pass.layer));
  XLSTM_OF_ISA(pack<Real>)(pass.layer, Pass::kReads, packed.data());
  return packed;
}

template <typename Pass>
void forward(const Pass& pass, int threads) {
  auto* const segment = XLSTM_OF_ISA(layer_segment<Pass>);
  const auto packed = packed_weights(pass);
  const Segments segments(pass.layer, kShortest, pass.layer.S);
  parallel_for(segments.count(), threads_for(pass.layer, threads),
               [&](int64_t index) { segment(pass, segments.at(index), packed.data(), nullptr); });
}

template <typename Pass>
void backward(const Pass& pass, int threads) {
  auto* const segment = XLSTM_OF_ISA(layer_segment<Pass>);
  const auto packed = packed_weights(pass);
  const Segments segments(pass.layer, kSumsAtLeastFor, (kMostSegments + pass.layer.B - 1) / std::max<int64_t>(pass.layer.B, 1));
  const int64_t size = XLSTM_OF_ISA(sums_size<Pass>)(pass);
  std::vector<NumberOf<Pass>> sums(std::max<int64_t>(segments.count(), 1) * size);
  parallel_for(segments.count(), threads_for(pass.layer, threads),
               [&](int64_t index) { segment(pass, segments.at(index), packed.data(), sums.data() + index * size); });
  XLSTM_OF_ISA(add_up<Pass>)(pass, segments.count(), sums.data());
}

}  // namespace

template <typename Pass>
void mlstm_layer(const Pass& pass, int threads) {
  if constexpr (Pass::kSums) {
    backward(pass, threads);
  } else {
    forward(pass, threads);
  }
}

#define XLSTM_MLSTM_LAYER_OF(Real)                                       \
  template void mlstm_layer(const MlstmLayerInputs<Real>&, int);         \
  template void mlstm_layer(const MlstmLayerOutput<Real>&, int);         \
  template void mlstm_layer(const MlstmLayerOutputBackward<Real>&, int); \
  template void mlstm_layer(const MlstmLayerInputsBackward<Real>&, int);
XLSTM_MLSTM_LAYER_OF(float)
XLSTM_MLSTM_LAYER_OF(double)

}  // namespace xlstm::cpu
