// sequences.cuh - where the steps and chunks of sequence n lie, for plain batches and for cu_seqlens.
#pragma once
#include "common/sequences.h"
#include "device/language.cuh"
#include "mlstm/params.h"

namespace xlstm::mlstm {

struct ChunkedSpan : Span {
  int64_t first_slot;  // of its chunks
};

// Sequence n of cu_seqlens has slots first / L + n ...: at least as many as it has chunks, whatever the other lengths are.
XLSTM_DEVICE ChunkedSpan span_of(const Sequences& s, int64_t n, int L) {
  const Span span = span_of_sequence(s.cu_seqlens, n, s.S);
  return {span, s.cu_seqlens ? span.first / L + n : n * ((s.S + L - 1) / L)};
}

struct Chunk {
  int64_t sequence, index;
  ChunkedSpan span;
  bool real;  // some slots hold no chunk
};

XLSTM_DEVICE Chunk chunk_of_slot(const Sequences& s, int64_t slot, int L) {
  int64_t n = 0;
  if (!s.cu_seqlens) {
    n = slot / ((s.S + L - 1) / L);
  } else {
    for (int64_t above = s.N; above - n > 1;) {  // the last sequence whose first slot is at most this one
      const int64_t middle = (n + above) / 2;
      (span_of(s, middle, L).first_slot <= slot ? n : above) = middle;
    }
  }
  const ChunkedSpan span = span_of(s, n, L);
  const int64_t index = slot - span.first_slot;
  return {n, index, span, index * L < span.length};
}

struct Steps {  // of a walk: chunks in its own order, first to last or last to first
  int first, end;
};

XLSTM_DEVICE Steps steps_of_segment(int chunks, int segments, int segment) {
  const int each = (chunks + segments - 1) / segments, first = min(segment * each, chunks);
  return {first, first + min(each, chunks - first)};
}
XLSTM_DEVICE Steps steps_before_last_segment(int chunks, int segments) {
  const int each = (chunks + segments - 1) / segments;
  return {0, each ? (chunks - 1) / each * each : 0};
}

}  // namespace xlstm::mlstm
