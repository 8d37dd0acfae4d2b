// trace.h - every memory access of an instrumented kernel comes through here, on its way to the race detector and the profile.
#pragma once
#include "simt/state.h"

namespace xlstm::simt {

enum AccessFlags : unsigned {
  kRead = 0,
  kWrite = 1,
  kAtomic = 2,
  kAsync = 4,   // by the asynchronous proxy
  kSilent = 8,  // of interest to the race detector alone
};

struct Place {  // where an access comes from: a source line, or a code address that addr2line turns into one
  Site site;
  const void* code;
};
std::string describe_place(uint32_t place);  // by interned number
uint32_t intern(const Place& place);

enum class Space { Shared, Global };
struct Access {
  const char* address;
  size_t bytes;
  unsigned flags;
  uint32_t place;
  Space space;
};
void record(const void* p, size_t bytes, unsigned flags, const Place& place);

extern bool tracing;  // does anyone listen?
inline void touch(const void* p, size_t bytes, unsigned flags, const Site& site) {
  if (tracing && bytes) record(p, bytes, flags, Place{site, nullptr});
}

void trace_launch_begins();
void trace_launch_ends();
void trace_domain_begins();
void trace_domain_ends();
void trace_warp_synchronised(Warp& warp);
void trace_block_synchronised(Block& block);

// memory_profile.cpp
void profile_launch_begins();
void profile_launch_ends();
void profile_domain_begins();
void profile_domain_ends();
void profile_access(const Access& access);
void profile_matrix_rows(const void* const* rows, int count, bool write, const Site& site);  // ldmatrix, stmatrix: exact
void profile_flush(Warp& warp);

}  // namespace xlstm::simt
