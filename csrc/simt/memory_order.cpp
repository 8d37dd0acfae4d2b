// memory_order.cpp - flags in global memory with release and acquire, atomics, and vector accesses of known width.
// Execution is sequentially consistent; that an edge is missing shows as a race, not as an old value.
#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {
namespace {
std::map<const void*, Clock> flag_clocks;
uint64_t flag_domain = ~uint64_t(0);

Clock& flag_clock(const void* p) {
  if (flag_domain != machine.domain) flag_clocks.clear();
  flag_domain = machine.domain;
  return flag_clocks[p];
}

void check_aligned(const void* p, int bytes, const char* what, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    fail(std::string(what) + " at " + to_string(site) + ": the address is not aligned to " + std::to_string(bytes) + " bytes");
}
}  // namespace

void forget_flags() {
  flag_clocks.clear();
  flag_domain = ~uint64_t(0);
}

uint64_t load_relaxed(const void* p, int bytes, const Site& site) {
  check_aligned(p, bytes, "ld.relaxed", site);
  spin("ld.relaxed or ld.acquire", site);  // others may go first: a loop that spins on this makes progress
  touch(p, bytes, kRead | kAtomic, site);
  uint64_t value = 0;
  std::memcpy(&value, p, bytes);
  return value;
}

uint64_t load_acquire(const void* p, int bytes, const Site& site) {
  const uint64_t value = load_relaxed(p, bytes, site);
  order_acquire_single(flag_clock(p), self);
  return value;
}

void store_relaxed(void* p, uint64_t value, int bytes, const Site& site) {
  check_aligned(p, bytes, "st.relaxed", site);
  touch(p, bytes, kWrite | kAtomic, site);
  flag_clock(p).clear();  // a plain flag publishes nothing
  std::memcpy(p, &value, bytes);
  machine.idle_yields = 0;
}

void store_release(void* p, uint64_t value, int bytes, const Site& site) {
  store_relaxed(p, value, bytes, site);
  order_release_single(flag_clock(p), self);
}

uint32_t add_release(uint32_t* p, uint32_t value, const Site& site) {
  check_aligned(p, 4, "red.release", site);
  touch(p, 4, kWrite | kAtomic, site);
  order_release_single(flag_clock(p), self);  // joins what earlier additions published
  machine.idle_yields = 0;
  const uint32_t old = *p;
  *p = old + value;
  return old;
}

void atomic_update(void* p, int bytes, void (*update)(void* p, const void* operand, void* old), const void* operand, void* old,
                   const Site& site) {
  check_aligned(p, bytes, "atomic", site);
  touch(p, bytes, kWrite | kAtomic, site);
  machine.idle_yields = 0;
  update(p, operand, old);
}

void vector_load(void* to, const void* from, int bytes, const Site& site) {
  check_aligned(from, bytes, "a load", site);
  touch(from, bytes, kRead, site);
  std::memcpy(to, from, bytes);
}
void vector_store(void* to, const void* from, int bytes, const Site& site) {
  check_aligned(to, bytes, "a store", site);
  touch(to, bytes, kWrite, site);
  std::memcpy(to, from, bytes);
}

}  // namespace xlstm::simt
