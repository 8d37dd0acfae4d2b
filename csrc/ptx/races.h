// races.h - the race detector: one vector clock per warp, as long as settings.races is on. Two accesses to the same bytes, one
// of them a write, must be ordered by barriers, mbarriers, or a release that an acquire has seen. Lanes of one warp are one
// thread here. Relaxed loads and stores count as data, atomics and volatile accesses as synchronisation.
#pragma once
#include "ptx/machine.h"

namespace xlstm::ptx {

enum class Access : uint8_t { Read, Write, Synchronise };

void forget_races();  // a new launch
void touch_shared(Warp& w, const Instruction& i, Block& b, uint32_t offset, uint32_t bytes, Access access);
void touch_global(Warp& w, const Instruction& i, uint64_t address, uint32_t bytes, Access access);

void publish(Warp& w, Clock& into);          // a release: what w has done so far is before whatever receives it
void receive(Warp& w, const Clock& from);    // an acquire
Clock& clock_of(const void* p);              // of a synchronisation variable
void fence(Warp& w);                         // a release for the relaxed accesses that follow, an acquire of those before
void publish_relaxed(Warp& w, Clock& into);  // a relaxed write: what a fence before it covers
void receive_relaxed(Warp& w, const Clock& from);

// A st.async: the sender's write counts as of its issue.
void note_issue(Warp& w, Delivery& d);
void note_delivery(const Delivery& d, Clock& mbarrier);

}  // namespace xlstm::ptx
