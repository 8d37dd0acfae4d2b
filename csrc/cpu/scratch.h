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
    // Whole lines, and one between two pieces, so that their rows fall into different sets.
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine + kLine;
    if (bytes > room_) add(bytes);
    char* const taken = next_;
    next_ += bytes;
    room_ -= bytes;
    return reinterpret_cast<T*>(taken);
  }

 private:
  static constexpr size_t kLine = 64;

  void add(size_t bytes);

  char* next_ = nullptr;
  size_t room_ = 0;  // behind next_
};

}  // namespace xlstm::cpu
