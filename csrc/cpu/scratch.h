// scratch.h - memory of one thread for the task that it works on, taken piece by piece and kept for its next task.
#pragma once
#include <cstddef>
#include <cstdint>

namespace xlstm::cpu {

// Lives as long as the task. One at a time per thread; what was taken is lost with it.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Memory for `count` of them, undefined, aligned to a cache line. std::bad_alloc when there is none.
  template <typename T>
  __attribute__((always_inline)) T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  void* take_bytes(size_t bytes);
};

}  // namespace xlstm::cpu
