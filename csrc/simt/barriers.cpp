// barriers.cpp - __syncthreads and its votes, named barriers, cluster and grid barriers.
#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {
namespace {

void enlist(Barrier& barrier, Fiber* fiber) {
  fiber->next = nullptr;
  (barrier.tail ? barrier.tail->next : barrier.head) = fiber;
  barrier.tail = fiber;
}

void complete_block_barrier(Block& block) {
  block.vote_result = block.barriers[0].result;
  ++machine.counters.block_barriers;
  trace_block_synchronised(block);
  release_barrier(block.barriers[0]);
}

bool same_site(const Site& a, const Site& b) { return a.line == b.line && a.file == b.file; }

}  // namespace

void release_barrier(Barrier& barrier) {
  machine.idle_yields = 0;
  for (Fiber* fiber = barrier.head; fiber;) {
    Fiber* next = fiber->next;
    order_acquire(barrier.clock, fiber);
    make_ready(fiber);
    fiber = next;
  }
  barrier.head = barrier.tail = nullptr;
  barrier.arrived = barrier.needed = 0;
  ++barrier.phase;
  barrier.clock.clear();
}

int block_barrier(Vote vote, int predicate, const Site& site) {
  Fiber* me = self;
  Block& block = *me->block;
  Barrier& b = block.barriers[0];
  if (b.arrived == 0) {
    b.vote = vote;
    b.site = site;
    b.result = vote == Vote::And;
    b.needed = kWholeBlock;
  } else if (b.needed != kWholeBlock) {
    fail("__syncthreads() at " + to_string(site) + " meets bar.sync 0 with a thread count, at " + to_string(b.site));
  } else if (b.vote != vote || (machine.options.strict_sites && !same_site(b.site, site))) {
    fail("divergent barrier: __syncthreads() at " + to_string(site) + " while " + std::to_string(b.arrived) +
         " threads of the block wait at " + to_string(b.site));
  }
  switch (vote) {
    case Vote::None:
      break;
    case Vote::Count:
      b.result += predicate != 0;
      break;
    case Vote::And:
      b.result &= predicate != 0;
      break;
    case Vote::Or:
      b.result |= predicate != 0;
      break;
  }
  ++b.arrived;
  order_release(b.clock, me);
  enlist(b, me);
  if (b.arrived < block.alive) {
    block_on("__syncthreads", 0, site);
  } else {
    complete_block_barrier(block);
    switch_out();  // queued like the others, so that the last to arrive is not favoured
  }
  return block.vote_result;
}

void named_barrier(int id, int threads, bool wait, const Site& site) {
  const auto name = [&] { return "barrier " + std::to_string(id) + " at " + to_string(site); };
  if (id < 0 || id > 15) fail(name() + ": the id is not in 0..15");
  if (threads <= 0 || threads % 32 || threads > self->block->threads)
    fail(name() + ": thread count " + std::to_string(threads) + " is not a multiple of 32 up to the block's " +
         std::to_string(self->block->threads));
  Barrier& b = self->block->barriers[id];
  if (b.arrived == 0) {
    b.needed = threads;
    b.site = site;
  } else if (b.needed != threads) {
    fail(name() + " expects " + std::to_string(threads) + " threads, but " + to_string(b.site) + " expects " +
         std::to_string(b.needed));
  }
  ++b.arrived;
  order_release(b.clock, self);
  if (wait) enlist(b, self);
  if (b.arrived == threads) {
    ++machine.counters.block_barriers;
    release_barrier(b);
    if (wait) switch_out();
  } else if (wait) {
    block_on("bar.sync", id, site);
  }
}

void cluster_arrive(const Site& site) {
  Fiber* me = self;
  Barrier& b = machine.cluster_barrier;
  if (me->cluster_phase != b.phase)
    fail("barrier.cluster.arrive at " + to_string(site) + " follows another arrive without a wait");
  b.site = site;
  ++b.arrived;
  ++me->cluster_phase;
  order_release(b.clock, me);
  if (b.arrived < int(machine.fibers - machine.exited)) return;
  // Threads that arrived and do not wait yet must be ordered too, when they do: the clock outlives the phase.
  Clock finished = b.clock;
  release_barrier(b);
  b.finished = std::move(finished);
}

void cluster_wait(const Site& site) {
  Fiber* me = self;
  Barrier& b = machine.cluster_barrier;
  if (b.phase == me->cluster_phase) {
    order_acquire(b.finished, me);
    return;
  }
  if (b.phase + 1 != me->cluster_phase) fail("barrier.cluster.wait at " + to_string(site) + " without an arrive");
  enlist(b, me);
  block_on("barrier.cluster.wait", 0, site);
}

void grid_barrier(const Site& site) {
  if (!machine.config.cooperative) fail("grid_sync() at " + to_string(site) + " in a launch that is not cooperative");
  cluster_arrive(site);
  cluster_wait(site);
}

void leave_barriers(Fiber* fiber) {
  Block& block = *fiber->block;
  const Barrier& b = block.barriers[0];
  if (block.alive && b.arrived && b.needed == kWholeBlock && b.arrived >= block.alive) complete_block_barrier(block);
  Barrier& cluster = machine.cluster_barrier;
  if (cluster.arrived && cluster.arrived >= int(machine.fibers - machine.exited)) release_barrier(cluster);
}

unsigned cluster_rank() { return machine.config.cooperative ? 0 : self->block->rank; }
unsigned cluster_size() { return machine.config.cooperative ? 1 : unsigned(machine.blocks.size()); }

}  // namespace xlstm::simt
