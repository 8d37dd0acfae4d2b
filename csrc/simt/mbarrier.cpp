// mbarrier.cpp - mbarrier objects in shared memory: arrivals, expected bytes, parity waits, and arrivals from other blocks.
// The 64-bit object holds phase (bit 0), pending (1-20), expected (21-40), bytes + 2^20 (41-61) and the tag 01 (62-63).
#include "simt/race_detector.h"
#include "simt/state.h"

namespace xlstm::simt {
namespace {

struct State {
  unsigned phase, pending, expected;
  int bytes;
};
constexpr int kBytesBias = 1 << 20;

State load(uint64_t* barrier, const char* instruction, const Site& site) {
  bool shared = false;
  for (const Block& block : machine.blocks) shared |= in_shared(&block, barrier, 8);
  if (!shared || reinterpret_cast<uintptr_t>(barrier) % 8)
    fail(std::string(instruction) + " at " + to_string(site) + ": not an aligned address in shared memory");
  const uint64_t v = *barrier;
  if (v >> 62 != 1) fail(std::string(instruction) + " at " + to_string(site) + ": the mbarrier is not initialised");
  return {unsigned(v & 1), unsigned(v >> 1 & 0xfffff), unsigned(v >> 21 & 0xfffff), int(v >> 41 & 0x1fffff) - kBytesBias};
}
void store(uint64_t* barrier, const State& s) {
  *barrier = 1ull << 62 | uint64_t(s.bytes + kBytesBias) << 41 | uint64_t(s.expected) << 21 | uint64_t(s.pending) << 1 | s.phase;
}

void settle(uint64_t* barrier, State& s) {  // ends the phase when everything has arrived
  if (s.pending == 0 && s.bytes == 0) {
    s.phase ^= 1;
    s.pending = s.expected;
    ++machine.counters.mbarrier_phases;
    machine.idle_yields = 0;
    auto& waiters = machine.mbarrier_waiters;
    for (size_t i = 0; i < waiters.size();) {
      if (waiters[i].barrier == barrier) {
        make_ready(waiters[i].fiber);
        waiters.erase(waiters.begin() + i);
      } else {
        ++i;
      }
    }
  }
  store(barrier, s);
}

void arrive(uint64_t* barrier, unsigned expect_bytes, const char* instruction, Clock MbarrierClock::* scope, const Site& site) {
  State s = load(barrier, instruction, site);
  if (s.pending == 0)
    fail(std::string(instruction) + " at " + to_string(site) + ": more arrivals than the barrier expects in this phase");
  order_release_single(machine.mbarrier_clocks[barrier].*scope, self);
  s.bytes += int(expect_bytes);
  --s.pending;
  settle(barrier, s);
}

}  // namespace

void mbarrier_init(uint64_t* barrier, unsigned count, const Site& site) {
  if (!in_shared(self->block, barrier, 8) || reinterpret_cast<uintptr_t>(barrier) % 8)
    fail("mbarrier.init at " + to_string(site) + ": not an aligned address in this block's shared memory");
  if (count == 0 || count > 0xfffff)
    fail("mbarrier.init at " + to_string(site) + ": count " + std::to_string(count) + " is not in 1..2^20-1");
  store(barrier, State{0, count, count, 0});
}

void mbarrier_arrive(uint64_t* barrier, unsigned expect_bytes, const Site& site) {
  if (expect_bytes) require_architecture(90, "mbarrier.arrive.expect_tx", site);
  arrive(barrier, expect_bytes, "mbarrier.arrive", &MbarrierClock::local, site);
}

void mbarrier_remote_arrive(uint64_t* barrier, unsigned rank, const Site& site) {
  require_architecture(90, "mbarrier.arrive.shared::cluster", site);
  arrive(static_cast<uint64_t*>(map_shared_rank(barrier, rank)), 0, "mbarrier.arrive.release.cluster", &MbarrierClock::remote,
         site);
}

void complete_bytes(uint64_t* barrier, const AsyncOperation& operation) {
  State s = load(barrier, "complete_tx", operation.site);
  MbarrierClock& clock = machine.mbarrier_clocks[barrier];
  order_completion(operation.remote ? clock.remote : clock.local, operation.issuer, operation.epoch);
  s.bytes -= int(operation.bytes);
  settle(barrier, s);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity, bool cluster_scope, const Site& site) {
  require_architecture(90, "mbarrier.try_wait", site);
  Fiber* me = self;
  while (load(barrier, "mbarrier.try_wait", site).phase == (parity & 1)) {
    machine.mbarrier_waiters.push_back({barrier, me});
    const auto offset = uint32_t(reinterpret_cast<char*>(barrier) - me->block->dynamic_memory);
    block_on("mbarrier.try_wait", int64_t(parity & 1) << 32 | offset, site);
  }
  const MbarrierClock& clock = machine.mbarrier_clocks[barrier];
  order_acquire_single(clock.local, me);
  if (cluster_scope) order_acquire_single(clock.remote, me);
}

}  // namespace xlstm::simt
