#include "ptx/races.h"

#include <algorithm>
#include <unordered_map>

namespace xlstm::ptx {
namespace {

constexpr uint32_t kGrain = 1;  // bytes told apart: flags side by side belong to two threads
std::unordered_map<uint64_t, Word> global_words;
std::unordered_map<const void*, Clock> clocks;

struct Actor {  // whose access it is, as of when
  uint32_t serial;
  const Clock& clock;
  const Warp* warp;
  const Instruction* by;
};

uint32_t& own_time(Warp& w) {
  if (w.clock.empty()) {
    w.clock.assign(current->set_warps, 0);
    w.clock[w.serial - current->first_serial] = 1;
  }
  return w.clock[w.serial - current->first_serial];
}

void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t n = 0; n < from.size(); ++n) into[n] = std::max(into[n], from[n]);
}

// Warps of an earlier set (a block that has run before this one) are ordered with nobody of this launch.
bool before(const Touch& t, const Actor& a) {
  if (t.serial == a.serial) return true;
  if (t.serial < current->first_serial) return false;
  const size_t n = t.serial - current->first_serial;
  return n < a.clock.size() && a.clock[n] >= t.time;
}

[[noreturn]] void report(const Actor& a, const Touch& t, const char* mine, const char* theirs, const char* where) {
  std::string source;
  if (t.by->place >= 0) source = " at " + current->kernel->places[t.by->place];
  fault(a.warp, a.by,
        std::string("race on ") + where + ": this " + mine + " and the " + theirs + " by warp " + std::to_string(t.serial) +
            " of the launch" + source + " `" + t.by->text + "` are not ordered");
}

void touch(Word& word, const Actor& a, Access access, const char* where) {
  const bool writes = access == Access::Write;
  if (word.write.by && !before(word.write, a)) report(a, word.write, writes ? "write" : "read", "write", where);
  const Touch now{a.serial, a.clock[a.serial - current->first_serial], a.by};
  if (writes) {
    for (const Touch& r : word.reads)
      if (!before(r, a)) report(a, r, "write", "read", where);
    word.reads.clear();
    word.write = now;
    return;
  }
  for (Touch& r : word.reads)
    if (r.serial == a.serial) {
      r = now;
      return;
    }
  word.reads.push_back(now);
}

void touch_words(Block& b, const Actor& a, uint32_t offset, uint32_t bytes, Access access) {
  if (b.words.empty()) b.words.resize(b.shared_bytes / kGrain + 1);
  const uint32_t first = offset - kSharedStart;
  for (uint32_t n = first / kGrain; n <= (first + bytes - 1) / kGrain; ++n) touch(b.words[n], a, access, "shared memory");
}

}  // namespace

void forget_races() {
  global_words.clear();
  clocks.clear();
}

void touch_shared(Warp& w, const Instruction& i, Block& b, uint32_t offset, uint32_t bytes, Access access) {
  if (access == Access::Synchronise) return;
  own_time(w);
  touch_words(b, {w.serial, w.clock, &w, &i}, offset, bytes, access);
}

void touch_global(Warp& w, const Instruction& i, uint64_t address, uint32_t bytes, Access access) {
  if (access == Access::Synchronise) return;
  own_time(w);
  const Actor a{w.serial, w.clock, &w, &i};
  for (uint64_t at = address / kGrain; at <= (address + bytes - 1) / kGrain; ++at)
    touch(global_words[at], a, access, "global memory");
}

void publish(Warp& w, Clock& into) {
  if (!settings.races) return;
  uint32_t& time = own_time(w);
  join(into, w.clock);
  ++time;
}

void receive(Warp& w, const Clock& from) {
  if (!settings.races) return;
  own_time(w);
  join(w.clock, from);
}

Clock& clock_of(const void* p) { return clocks[p]; }

void fence(Warp& w) {
  if (!settings.races) return;
  uint32_t& time = own_time(w);
  join(w.clock, w.gathered);
  w.fenced = w.clock;
  ++time;
}

void publish_relaxed(Warp& w, Clock& into) {
  if (settings.races) join(into, w.fenced);
}

void receive_relaxed(Warp& w, const Clock& from) {
  if (settings.races) join(w.gathered, from);
}

void note_issue(Warp& w, Delivery& d) {
  d.serial = w.serial;
  if (!settings.races) return;
  uint32_t& time = own_time(w);
  d.clock = w.clock;
  ++time;
}

void note_delivery(const Delivery& d, Clock& mbarrier) {
  if (!settings.races) return;
  touch_words(*d.to, {d.serial, d.clock, d.to->warps[0].get(), d.by}, d.offset, d.bytes, Access::Write);
  join(mbarrier, d.clock);
}

}  // namespace xlstm::ptx
