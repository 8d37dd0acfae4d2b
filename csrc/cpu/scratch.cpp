#include "cpu/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace xlstm::cpu {
namespace {

constexpr size_t kLine = 64, kSmallest = size_t(64) << 10;
constexpr size_t kKept = size_t(4) << 20;  // a thread that sleeps holds no more than this

struct Free {
  void operator()(char* p) const { std::free(p); }
};
struct Block {
  std::unique_ptr<char, Free> memory;
  size_t size = 0;
};
struct Memory {
  std::vector<Block> blocks;  // pieces are taken from the last one
  size_t used = 0;            // of the last one

  void add(size_t size) {
    char* const memory = static_cast<char*>(std::aligned_alloc(kLine, size));
    if (!memory) throw std::bad_alloc();
    blocks.push_back({std::unique_ptr<char, Free>(memory), size});
    used = 0;
  }
};
thread_local Memory memory;

}  // namespace

Scratch::Scratch() { memory.used = 0; }

// Several blocks become one, so that the next task of this size takes its memory in one piece.
Scratch::~Scratch() {
  size_t total = 0;
  for (const Block& block : memory.blocks) total += block.size;
  if (memory.blocks.size() == 1 && total <= kKept) return;
  memory.blocks.clear();
  if (total <= kKept) {
    try {
      memory.add(total);
    } catch (const std::bad_alloc&) {  // the next task will say so
    }
  }
}

void* Scratch::take_bytes(size_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine + kLine;  // a line between two pieces, so that their rows fall into different sets
  if (memory.blocks.empty() || memory.used + bytes > memory.blocks.back().size) memory.add(std::max(bytes, kSmallest));
  char* const taken = memory.blocks.back().memory.get() + memory.used;
  memory.used += bytes;
  return taken;
}

}  // namespace xlstm::cpu
