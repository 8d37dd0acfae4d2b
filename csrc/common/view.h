// view.h - a tensor as a launcher gets it, one value from Python to the kernel, and the stream that a launch goes to.
#pragma once
#include <cstdint>

namespace xlstm {

// A (B, S, ...) tensor: where it begins and how many elements apart its batches, steps and heads are; the last axis has unit
// stride. A null `data` is an absent tensor; `step` is 0 for tensors without steps, `head` for tensors without heads.
template <class T = void>
struct View {
  T* data;
  int64_t batch, step, head;
};

// A CUDA stream and the index of its device; -1 on the host executor.
struct Stream {
  void* handle = nullptr;
  int device = -1;
};

}  // namespace xlstm
