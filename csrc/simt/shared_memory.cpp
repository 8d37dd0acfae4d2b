// shared_memory.cpp - where a block's shared memory lies on the host: dynamic, static and distributed, with canaries between.
#include <algorithm>
#include <cstdlib>

#include "simt/state.h"

namespace xlstm::simt {
namespace {
constexpr unsigned char kCanary = 0xa5;
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

bool canary_intact(const char* from, const char* to) {
  return std::all_of(from, to, [](char c) { return static_cast<unsigned char>(c) == kCanary; });
}
}  // namespace

void prepare_shared_memory(unsigned blocks) {
  Machine& m = machine;
  const size_t dynamic = m.config.shared_bytes;
  // canary | dynamic | canary | static | canary
  m.slab_stride = round_up(kCanaryBytes + round_up(dynamic + kCanaryBytes, 1024) + kStaticBytes + kCanaryBytes, 1024);
  m.slab_used = m.slab_stride * blocks;
#ifdef XLSTM_SIMT_ASAN
  if (m.slab) __asan_unpoison_memory_region(m.slab, m.slab_capacity);
#endif
  if (m.slab_capacity < m.slab_used) {
    std::free(m.slab);
    m.slab = nullptr;
    m.slab_capacity = 0;
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, m.slab_used))
      throw Error("simt: no memory for the shared memory of " + std::to_string(blocks) + " blocks");
    m.slab = static_cast<char*>(memory);
    m.slab_capacity = m.slab_used;
  }
  for (unsigned i = 0; i < blocks; ++i) {
    char* base = m.slab + i * m.slab_stride;
    Block& b = m.blocks[i];
    b.dynamic_memory = base + kCanaryBytes;
    b.static_memory = b.dynamic_memory + round_up(dynamic + kCanaryBytes, 1024);
    if (m.options.poison) std::memset(base, 0xff, m.slab_stride);
    std::memset(base, kCanary, kCanaryBytes);
    std::memset(b.dynamic_memory + dynamic, kCanary, size_t(b.static_memory - b.dynamic_memory) - dynamic);
    std::memset(b.static_memory + kStaticBytes, kCanary, kCanaryBytes);
#ifdef XLSTM_SIMT_ASAN
    __asan_poison_memory_region(base, kCanaryBytes);
    __asan_poison_memory_region(b.dynamic_memory + dynamic, size_t(b.static_memory - b.dynamic_memory) - dynamic);
    __asan_poison_memory_region(b.static_memory + kStaticBytes, kCanaryBytes);
#endif
  }
}

void check_canaries() {
#ifndef XLSTM_SIMT_ASAN  // the canaries are poisoned there
  for (const Block& b : machine.blocks) {
    const std::string in = std::string("simt: in ") + machine.kernel + ", block " + to_string(b.index) + ": ";
    const char* dynamic_end = b.dynamic_memory + machine.config.shared_bytes;
    if (!canary_intact(b.dynamic_memory - kCanaryBytes, b.dynamic_memory)) throw Error(in + "write before dynamic shared memory");
    if (!canary_intact(dynamic_end, b.static_memory))
      throw Error(in + "write past dynamic shared memory, whose size at launch was " +
                  std::to_string(machine.config.shared_bytes) + " bytes");
    if (!canary_intact(b.static_memory + kStaticBytes, b.static_memory + kStaticBytes + kCanaryBytes))
      throw Error(in + "write past static shared memory");
  }
#endif
}

bool in_shared(const Block* b, const void* p, size_t bytes) {
  const auto* c = static_cast<const char*>(p);
  return (c >= b->dynamic_memory && c + bytes <= b->dynamic_memory + machine.config.shared_bytes) ||
         (c >= b->static_memory && c + bytes <= b->static_memory + kStaticBytes);
}

void* dynamic_shared() { return self->block->dynamic_memory; }

uint32_t shared_address(const void* p) {
  if (!in_shared(self->block, p, 0)) fail("an address is not in this block's shared memory");
  return kSharedWindow + uint32_t(static_cast<const char*>(p) - self->block->dynamic_memory);
}

void* static_shared(const void* key, size_t bytes, size_t align, const char* name) {
  Machine& m = machine;
  auto found = m.statics.find(key);
  if (found == m.statics.end()) {
    const size_t offset = round_up(m.static_used, align);
    if (offset + bytes > kStaticBytes) fail(std::string("static shared memory exceeds 48 KiB at ") + name);
    if (offset + bytes + m.config.shared_bytes > m.architecture->shared_per_block)
      fail("static and dynamic shared memory, " + std::to_string(offset + bytes + m.config.shared_bytes) + " bytes at " + name +
           ", exceed the limit of sm_" + std::to_string(m.architecture->number));
    m.static_used = offset + bytes;
    found = m.statics.emplace(key, StaticVariable{offset, bytes, name}).first;
  }
  return self->block->static_memory + found->second.offset;
}

void* map_shared_rank(const void* p, unsigned rank) {
  const Block* b = self->block;
  const std::string name = "map_shared_rank of rank " + std::to_string(rank);
  if (rank >= cluster_size()) fail(name + " in a cluster of " + std::to_string(cluster_size()));
  if (!in_shared(b, p, 0)) fail(name + ": the address is not in this block's shared memory");
  const Block& peer = machine.blocks[rank];
  if (peer.alive == 0) fail(name + ": that block has already exited");
  return peer.dynamic_memory + (static_cast<const char*>(p) - b->dynamic_memory);
}

}  // namespace xlstm::simt
