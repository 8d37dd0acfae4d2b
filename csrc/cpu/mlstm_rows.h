// mlstm_rows.h - one head of one sequence, and the rows of its tensors as whole vectors of Real: where they lie, or in a copy.
// Included only by files that are compiled once per instruction set.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu/mlstm.h"
#include "cpu/scratch.h"
#include "cpu/vector.h"
#include "device/math.cuh"

namespace xlstm::cpu {
namespace {

constexpr int64_t kCached = 512 << 10;  // bytes of q and v, or of k and h, or of their gradients

// Which part of the tensors a task works on. DK and DV are the head dims in whole vectors.
template <typename Real>
struct Head {
  int64_t task, head, batch = 0, first = 0, steps, L, chunks;
  int64_t DK, DV, room;  // room: the steps of a chunk in whole vectors
  bool long_way;         // whether its rows are more than a second-level cache holds

  Head(const MlstmInputs<Real>& p, int64_t task) : task(task), head(task % p.NH), steps(p.S) {
    const int64_t sequence = task / p.NH;
    if (p.cu_seqlens) {
      first = std::min<int64_t>(std::max(p.cu_seqlens[sequence], 0), p.S);
      steps = std::min<int64_t>(std::max<int64_t>(p.cu_seqlens[sequence + 1], first), p.S) - first;
    } else {
      batch = sequence;
    }
    L = std::max<int64_t>(std::min(p.L ? p.L : chunk_length(steps, p.DHQK, p.DHHV), steps), 1);
    chunks = chunks_of(steps, L);
    DK = whole_vectors<Real>(p.DHQK);
    DV = whole_vectors<Real>(p.DHHV);
    room = whole_vectors<Real>(L);
    long_way = steps * (DK + DV) * static_cast<int64_t>(sizeof(Real)) > kCached;
  }
  int64_t steps_of(int64_t chunk) const { return std::min(L, steps - chunk * L); }
  template <typename T>
  T* at(const View<>& x, int64_t step) const {
    return static_cast<T*>(x.data) + batch * x.batch + (first + step) * x.step + head * x.head;
  }
};

XLSTM_DEVICE float number(Storage storage, uint16_t bits) {
  if (storage == Storage::kBFloat16) return device::float_of(uint32_t(bits) << 16);
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = uint32_t(bits & 0x7fff) << 13;
  const bool special = (bits & 0x7c00) == 0x7c00;  // infinity or NaN
  const float finite = device::float_of(magnitude) * 0x1p112f;
  return device::float_of(sign | (special ? magnitude | 0x7f800000u : device::bits_of(finite)));
}
// Rounded to nearest, ties to even.
XLSTM_DEVICE uint16_t bits_of_number(Storage storage, float x) {
  const uint32_t bits = device::bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (storage == Storage::kBFloat16) {
    return static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  const uint32_t normal = (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = device::bits_of(device::float_of(magnitude) + 0.5f) - 0x3f000000;  // the sum rounds to 2^-24
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>(sign | (magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? subnormal : normal));
}

// columns numbers as `padded` Reals, the rest 0, and back.
template <typename Real, Storage storage>
XLSTM_DEVICE void unpack(const void* from, int64_t columns, int64_t padded, Real* __restrict__ to) {
  for (int64_t column = 0; column < columns; ++column) {
    if constexpr (storage == Storage::kReal) to[column] = static_cast<const Real*>(from)[column];
    if constexpr (storage != Storage::kReal) to[column] = number(storage, static_cast<const uint16_t*>(from)[column]);
  }
  for (int64_t column = columns; column < padded; ++column) to[column] = 0;
}
template <typename Real, Storage storage>
XLSTM_DEVICE void pack(const Real* from, int64_t columns, void* __restrict__ to) {
  for (int64_t column = 0; column < columns; ++column) {
    if constexpr (storage == Storage::kReal) static_cast<Real*>(to)[column] = from[column];
    if constexpr (storage != Storage::kReal) {
      static_cast<uint16_t*>(to)[column] = bits_of_number(storage, static_cast<float>(from[column]));
    }
  }
}

template <typename Real>
struct Rows {
  Real* data = nullptr;
  int64_t step = 0;
  XLSTM_DEVICE Real* at(int64_t row) const { return data + row * step; }
};

// The rows of a tensor for one head, a chunk at a time. Reals that fill whole vectors stay where they are.
template <typename Real>
class RowsOf {
 public:
  RowsOf(Scratch& scratch, const Head<Real>& head, const MlstmInputs<Real>& p, const View<>& view, int64_t columns)
      : head_(head), view_(view), storage_(p.storage), columns_(columns), padded_(whole_vectors<Real>(columns)) {
    in_place_ = storage_ == Storage::kReal && columns_ == padded_;
    if (!in_place_) copy_ = {scratch.take<Real>(head.L * padded_), padded_};
  }
  Rows<const Real> read(int64_t first, int64_t count) {
    if (in_place_) return {head_.template at<const Real>(view_, first), view_.step};
    for (int64_t row = 0; row < count; ++row) {
      Real* const to = copy_.at(row);
      switch (storage_) {
        case Storage::kReal:
          unpack<Real, Storage::kReal>(head_.template at<const Real>(view_, first + row), columns_, padded_, to);
          break;
        case Storage::kBFloat16:
          unpack<Real, Storage::kBFloat16>(head_.template at<const uint16_t>(view_, first + row), columns_, padded_, to);
          break;
        case Storage::kFloat16:
          unpack<Real, Storage::kFloat16>(head_.template at<const uint16_t>(view_, first + row), columns_, padded_, to);
          break;
      }
    }
    return {copy_.data, copy_.step};
  }
  // Asks for a row that is read later.
  XLSTM_DEVICE void prefetch(int64_t row) const {
    if (!in_place_) return;
    const Real* const at = head_.template at<const Real>(view_, row);
    for (int64_t column = 0; column < columns_; column += 64 / sizeof(Real)) __builtin_prefetch(at + column, 0, 2);
  }
  // Where results go, and that they are complete.
  Rows<Real> target(int64_t first) const {
    return in_place_ ? Rows<Real>{head_.template at<Real>(view_, first), view_.step} : copy_;
  }
  void written(int64_t first, int64_t count) const {
    if (in_place_) return;
    for (int64_t row = 0; row < count; ++row) put(copy_.at(row), first + row);
  }
  void fill(int64_t first, int64_t end, Real value) const {
    for (int64_t step = first; step < end; ++step) {
      for (int64_t column = 0; column < columns_; ++column) put(&value, step, column, 1);
    }
  }

 private:
  void put(const Real* from, int64_t step) const { put(from, step, 0, columns_); }
  void put(const Real* from, int64_t step, int64_t column, int64_t columns) const {
    switch (storage_) {
      case Storage::kReal:
        return pack<Real, Storage::kReal>(from, columns, head_.template at<Real>(view_, step) + column);
      case Storage::kBFloat16:
        return pack<Real, Storage::kBFloat16>(from, columns, head_.template at<uint16_t>(view_, step) + column);
      case Storage::kFloat16:
        return pack<Real, Storage::kFloat16>(from, columns, head_.template at<uint16_t>(view_, step) + column);
    }
  }

  const Head<Real>& head_;
  const View<> view_;
  const Storage storage_;
  const int64_t columns_, padded_;
  bool in_place_;
  Rows<Real> copy_;
};

// Steps of the next chunk, whose rows are asked for between the tiles of this one, so that memory works while products are
// computed. Asked for all at once they would only be waited for earlier (docs/kernel-notes.md).
struct NextChunk {
  int64_t step = 0, end = 0;

  template <typename Real, size_t N>
  XLSTM_DEVICE void ask(const RowsOf<Real>* const (&tensors)[N]) {
    if (step == end) return;
    for (const RowsOf<Real>* rows : tensors) rows->prefetch(step);
    ++step;
  }
};

// A matrix of states, padded with zeros or packed again; from may be null for zeros.
template <typename Real>
void pad_matrix(const Real* from, int64_t rows, int64_t columns, Real* to, int64_t padded_rows, int64_t padded_columns) {
  for (int64_t row = 0; row < padded_rows; ++row) {
    const int64_t given = from && row < rows ? columns : 0;
    for (int64_t column = 0; column < given; ++column) to[row * padded_columns + column] = from[row * columns + column];
    for (int64_t column = given; column < padded_columns; ++column) to[row * padded_columns + column] = 0;
  }
}
template <typename Real>
void pack_matrix(const Real* from, int64_t padded_columns, int64_t rows, int64_t columns, Real* to) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) to[row * columns + column] = from[row * padded_columns + column];
  }
}

// Whether rows hold only finite numbers. Several sums, because one would wait for itself.
template <typename Real>
struct Finite {
  Vector<Real> sum[4] = {};

  XLSTM_DEVICE void add(const Real* row, int64_t columns) {
    int64_t column = 0;
    for (; column + 4 * kLanes<Real> <= columns; column += 4 * kLanes<Real>) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += load(row + column + i * kLanes<Real>) * Real(0);
    }
    for (; column < columns; column += kLanes<Real>) sum[0] += load(row + column) * Real(0);
  }
  XLSTM_DEVICE bool all() const { return sum_of<Real>((sum[0] + sum[1]) + (sum[2] + sum[3])) == 0; }
};

// The steps before the first that holds a NaN, or an infinity other than a gate's that forgets nothing, forgets everything or is
// closed. A product multiplies a NaN with the zeros of steps that it comes after, so neither that step nor a later one is
// computed.
template <typename Real>
int64_t sound_steps(const MlstmInputs<Real>& p, const Head<Real>& head, Rows<const Real> K, Rows<const Real> V, int64_t first,
                    int64_t steps) {
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  const auto sound_gates = [&](int64_t t) {
    const Real i = *head.template at<const Real>(p.i, first + t), f = *head.template at<const Real>(p.f, first + t);
    return i < infinity && f == f;
  };
  Finite<Real> finite;
  bool sound = true;
  for (int64_t t = 0; t < steps; ++t) {
    finite.add(K.at(t), head.DK);
    finite.add(V.at(t), head.DV);
    sound &= sound_gates(t);
  }
  if (sound && finite.all()) return steps;
  for (int64_t t = 0; t < steps; ++t) {
    Finite<Real> alone;
    alone.add(K.at(t), head.DK);
    alone.add(V.at(t), head.DV);
    if (!sound_gates(t) || !alone.all()) return t;
  }
  return steps;
}

}  // namespace
}  // namespace xlstm::cpu
