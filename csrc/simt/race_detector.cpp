#include "simt/race_detector.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <unordered_map>

namespace xlstm::simt {
namespace {

constexpr uint32_t kAsyncActor = 0x80000000u, kPlaceMask = 0x3fffffffu, kAtomicMark = 0x80000000u, kAsyncMark = 0x40000000u;
constexpr size_t kPage = 4096, kMostReports = 8;

// The last write of a byte and the last two unordered reads. actor: 0 for none, 1 + fiber index, or with kAsyncActor an
// asynchronous copy issued by that fiber. domain: nothing but the launch's end orders two domains.
struct Cell {
  uint32_t epoch = 0, actor = 0, place = 0, domain = 0;
};
struct Shadow {
  Cell write, read, other_read;
};
using Page = std::array<Shadow, kPage>;

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::vector<std::string> found;
std::map<std::pair<uint32_t, uint32_t>, int> reported;
uint32_t domain_number = 0;

uintptr_t last_number = 0;  // the page of the last access
Page* last_page = nullptr;

Shadow& shadow(const char* p) {
  const uintptr_t number = reinterpret_cast<uintptr_t>(p) / kPage;
  if (number != last_number || !last_page) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    last_page = page.get();
    last_number = number;
  }
  return (*last_page)[reinterpret_cast<uintptr_t>(p) % kPage];
}

bool knows(const Clock& clock, uint32_t warp, uint32_t actor, uint32_t epoch) {
  if (warp < clock.warp.size() && epoch <= clock.warp[warp] && !(actor & kAsyncActor)) return true;
  const auto entry = std::lower_bound(clock.single.begin(), clock.single.end(), std::make_pair(actor, 0u));
  return entry != clock.single.end() && entry->first == actor && epoch <= entry->second;
}

bool ordered(const Cell& before, const Fiber* now) {
  if (!before.actor) return true;
  if (before.domain != domain_number) return false;
  if (before.actor == now->index + 1) return true;
  const Fiber* other = machine.pool[(before.actor & ~kAsyncActor) - 1].get();
  if (!(before.actor & kAsyncActor) && other->warp == now->warp && before.epoch < now->warp_synced) return true;
  return knows(now->warp->known, other->warp->index, before.actor, before.epoch) ||
         knows(now->known, other->warp->index, before.actor, before.epoch);
}

std::string where(const char* p) {
  const Machine& m = machine;
  if (p < m.slab || p >= m.slab + m.slab_used) {
    char text[32];
    std::snprintf(text, sizeof text, "%p", static_cast<const void*>(p));
    return std::string("global memory at ") + text;
  }
  const size_t block = size_t(p - m.slab) / m.slab_stride;
  const Block& b = m.blocks[block];
  const std::string of = m.blocks.size() > 1 ? " of block " + to_string(b.index) : "";
  if (p >= b.static_memory) {
    const size_t offset = size_t(p - b.static_memory);
    for (const auto& [key, variable] : m.statics)
      if (offset >= variable.offset && offset < variable.offset + variable.bytes)
        return std::string("shared variable ") + variable.name + of + ", byte " + std::to_string(offset - variable.offset);
  }
  return "dynamic shared memory" + of + ", byte " + std::to_string(p - b.dynamic_memory);
}

std::string actor_name(const Cell& cell) {
  if (cell.domain != domain_number) return "a thread of another block";
  const std::string thread = describe(machine.pool[(cell.actor & ~kAsyncActor) - 1].get());
  return cell.actor & kAsyncActor ? "an asynchronous copy issued by " + thread : thread;
}

void report(const Cell& before, bool before_writes, const Cell& now, bool now_writes, const char* p) {
  const uint32_t then_place = before.place & kPlaceMask, now_place = now.place & kPlaceMask;
  if (reported[{then_place, now_place}]++ || found.size() >= kMostReports) return;
  found.push_back("data race on " + where(p) + ": " + (now_writes ? "write" : "read") + " by " + actor_name(now) + " at " +
                  describe_place(now_place) + ", and unordered " + (before_writes ? "write" : "read") + " by " +
                  actor_name(before) + " at " + describe_place(then_place));
}

void access_byte(const char* p, const Fiber* fiber, bool write, const Cell& now) {
  Shadow& s = shadow(p);
  const auto check = [&](const Cell& before, bool before_writes) {
    if (before.place & now.place & kAtomicMark) return;
    if (!ordered(before, fiber)) report(before, before_writes, now, write, p);
  };
  check(s.write, true);
  if (write) {
    check(s.read, false);
    check(s.other_read, false);
    s.write = now;
    s.read.actor = s.other_read.actor = 0;
  } else {
    const bool keep = s.read.actor && s.read.actor != now.actor && !ordered(s.read, fiber);
    if (keep && (!s.other_read.actor || ordered(s.other_read, fiber))) s.other_read = s.read;
    s.read = now;
  }
}

void join(Clock& to, const Clock& from) {
  if (to.warp.size() < from.warp.size()) to.warp.resize(from.warp.size());
  for (size_t i = 0; i < from.warp.size(); ++i) to.warp[i] = std::max(to.warp[i], from.warp[i]);
  if (from.single.empty()) return;
  std::vector<std::pair<uint32_t, uint32_t>> merged;
  merged.reserve(to.single.size() + from.single.size());
  auto a = to.single.cbegin();
  auto b = from.single.cbegin();
  while (a != to.single.cend() || b != from.single.cend()) {
    if (b == from.single.cend() || (a != to.single.cend() && a->first < b->first)) {
      merged.push_back(*a++);
    } else if (a == to.single.cend() || b->first < a->first) {
      merged.push_back(*b++);
    } else {
      merged.emplace_back(a->first, std::max(a->second, b->second));
      ++a, ++b;
    }
  }
  to.single = std::move(merged);
}

void publish(Clock& to, uint32_t actor, uint32_t epoch) {
  const auto entry = std::lower_bound(to.single.begin(), to.single.end(), std::make_pair(actor, 0u));
  if (entry != to.single.end() && entry->first == actor)
    entry->second = std::max(entry->second, epoch);
  else
    to.single.insert(entry, {actor, epoch});
}

void begin_epoch(Fiber* fiber) { fiber->epoch = ++fiber->warp->epoch; }

}  // namespace

void race_launch_begins() {
  pages.clear();
  found.clear();
  reported.clear();
  last_page = nullptr;
}

void race_domain_begins() {
  if (!machine.options.races) return;
  ++domain_number;
  const Machine& m = machine;
  for (uintptr_t page = reinterpret_cast<uintptr_t>(m.slab) / kPage;
       page <= reinterpret_cast<uintptr_t>(m.slab + m.slab_used) / kPage; ++page) {
    const auto entry = pages.find(page);
    if (entry != pages.end()) entry->second->fill(Shadow{});  // other blocks' shared memory lay here
  }
}

void race_domain_ends() {
  if (found.empty()) return;
  std::string text = std::string("simt: in ") + machine.kernel + " (" + schedule_description() + ")";
  for (const std::string& race : found) text += "\n  " + race;
  throw Error(text);
}

void race_access(const Access& a) {
  const Fiber* fiber = self;
  const uint32_t marks = (a.flags & kAtomic ? kAtomicMark : 0) | (a.flags & kAsync ? kAsyncMark : 0);
  const Cell now{fiber->epoch, fiber->index + 1, a.place | marks, domain_number};
  for (size_t i = 0; i < a.bytes; ++i) access_byte(a.address + i, fiber, a.flags & kWrite, now);
}

uint32_t race_async_write(const void* p, size_t bytes, const Site& site) {
  if (!machine.options.races) return 0;
  Fiber* fiber = self;
  const Cell now{++fiber->async_epoch, (fiber->index + 1) | kAsyncActor, intern(Place{site, nullptr}) | kAsyncMark,
                 domain_number};
  for (size_t i = 0; i < bytes; ++i) access_byte(static_cast<const char*>(p) + i, fiber, true, now);
  return now.epoch;
}

void race_async_read(const void* p, size_t bytes, const Site& site) {
  if (!machine.options.races || !self) return;
  const uint32_t place = intern(Place{site, nullptr});
  const Cell now{self->epoch, self->index + 1, place | kAsyncMark, domain_number};
  for (size_t i = 0; i < bytes; ++i) {
    const char* byte = static_cast<const char*>(p) + i;
    const Cell write = shadow(byte).write;
    if (write.actor && !(write.place & kAsyncMark)) {
      const Fiber* writer = machine.pool[write.actor - 1].get();
      if (writer->fence_epoch <= write.epoch && !reported[{write.place & kPlaceMask, place}]++ && found.size() < kMostReports)
        found.push_back("missing fence.proxy.async: " + where(byte) + ", written by " + describe(writer) + " at " +
                        describe_place(write.place & kPlaceMask) + ", is read through the async proxy at " + to_string(site));
    }
    access_byte(byte, self, false, now);
  }
}

void order_release(Clock& to, Fiber* by) {
  if (!machine.options.races) return;
  join(to, by->warp->known);
  if (!by->known.empty()) join(to, by->known);
  if (to.warp.size() <= by->warp->index) to.warp.resize(by->warp->index + 1);
  to.warp[by->warp->index] = std::max(to.warp[by->warp->index], by->epoch);
  begin_epoch(by);  // what comes later is not covered
}

void order_acquire(const Clock& from, Fiber* by) {
  if (!machine.options.races) return;
  Clock& known = by->warp->known;
  const uint32_t own = by->warp->index < known.warp.size() ? known.warp[by->warp->index] : 0;
  join(known, from);
  if (by->warp->index < known.warp.size()) {
    // A barrier that this thread's own warp has passed orders the lanes among each other too.
    if (by->warp->index < from.warp.size()) by->warp_synced = std::max(by->warp_synced, from.warp[by->warp->index] + 1);
    known.warp[by->warp->index] = own;
  }
}

void order_release_single(Clock& to, Fiber* by) {
  if (!machine.options.races) return;
  join(to, by->warp->known);
  join(to, by->known);
  if (by->warp_synced > 1) {  // lanes of the own warp up to the last warp barrier
    if (to.warp.size() <= by->warp->index) to.warp.resize(by->warp->index + 1);
    to.warp[by->warp->index] = std::max(to.warp[by->warp->index], by->warp_synced - 1);
  }
  publish(to, by->index + 1, by->epoch);
  begin_epoch(by);
}

void order_acquire_single(const Clock& from, Fiber* by) {
  if (!machine.options.races) return;
  join(by->known, from);
}

void order_completion(Clock& to, const Fiber* issuer, uint32_t epoch) {
  if (machine.options.races) publish(to, (issuer->index + 1) | kAsyncActor, epoch);
}

void order_warp(Warp* warp, unsigned mask) {
  if (!machine.options.races) return;
  if (mask == warp->live) {
    ++warp->epoch;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      Fiber* lane = warp->lanes[__builtin_ctz(rest)];
      if (!lane->known.empty()) join(warp->known, lane->known);
      lane->known.clear();
      lane->epoch = lane->warp_synced = warp->epoch;
    }
    return;
  }
  Clock gathered;
  for (unsigned rest = mask; rest; rest &= rest - 1) order_release_single(gathered, warp->lanes[__builtin_ctz(rest)]);
  for (unsigned rest = mask; rest; rest &= rest - 1) order_acquire_single(gathered, warp->lanes[__builtin_ctz(rest)]);
}

}  // namespace xlstm::simt
