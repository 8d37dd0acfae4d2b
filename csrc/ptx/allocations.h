// allocations.h - the exact bounds of every CPU tensor, so that an access one byte outside is found.
#pragma once
#include <cstdint>

namespace xlstm::ptx {

struct Range {
  uint64_t begin = 1, end = 0;
};

// From now on the allocations of PyTorch's CPU allocator are known, and fresh ones are NaN. Throws std::runtime_error where the
// allocator is not found. Tensors that are older are unknown: an access to them is reported.
void watch_allocations();

// A range that PyTorch does not know of (a test's buffer, a kernel's own memory).
void add_allocation(const void* p, uint64_t size);
void remove_allocation(const void* p);

// The last allocation that begins at or before the address; false where it ends before the address, or there is none.
bool allocation_before(uint64_t address, Range& range);

}  // namespace xlstm::ptx
