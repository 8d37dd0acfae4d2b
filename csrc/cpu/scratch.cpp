#include "cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace xlstm::cpu {
namespace {

constexpr size_t kSmallest = size_t(64) << 10;
constexpr size_t kKept = size_t(4) << 20;  // a thread that sleeps holds no more than this

struct Free {
  void operator()(char* p) const { std::free(p); }
};
struct Block {
  std::unique_ptr<char, Free> memory;
  size_t size = 0;
};
thread_local std::vector<Block> blocks;  // pieces are taken from the last one

void add_block(size_t size) {
  char* const memory = static_cast<char*>(std::aligned_alloc(64, size));
  if (!memory) throw std::bad_alloc();
  blocks.push_back({std::unique_ptr<char, Free>(memory), size});
}

}  // namespace

Scratch::Scratch() {
  if (blocks.empty()) return;
  next_ = blocks.back().memory.get();
  room_ = blocks.back().size;
}

// Several blocks become one, so that the next task of this size takes its memory in one piece.
Scratch::~Scratch() {
  size_t total = 0;
  for (const Block& block : blocks) total += block.size;
  if (blocks.size() == 1 && total <= kKept) return;
  blocks.clear();
  if (total <= kKept) {
    try {
      add_block(total);
    } catch (const std::bad_alloc&) {  // the next task will say so
    }
  }
}

void Scratch::add(size_t bytes) {
  add_block(std::max(bytes, kSmallest));
  next_ = blocks.back().memory.get();
  room_ = blocks.back().size;
}

}  // namespace xlstm::cpu
