// sequences.h - where the steps of a sequence lie: a row of the batch, or with cu_seqlens a piece of the only one.
#pragma once
#include <cstdint>

#include "device/kernel.cuh"

namespace xlstm {

struct Span {
  int64_t batch, first, length;  // steps [first, first + length) of this row of the batch
};

// Borders outside 0 .. S, or in falling order, count as the nearest that are not: nothing outside is touched.
XLSTM_DEVICE Span span_of_sequence(const int32_t* cu_seqlens, int64_t sequence, int64_t S) {
  if (!cu_seqlens) return {sequence, 0, S};
  const int64_t first = min(max(int64_t(cu_seqlens[sequence]), int64_t(0)), S);
  const int64_t end = min(max(int64_t(cu_seqlens[sequence + 1]), first), S);
  return {0, first, end - first};
}

}  // namespace xlstm
