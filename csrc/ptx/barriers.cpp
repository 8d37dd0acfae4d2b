// barriers.cpp - bar.sync, bar.arrive, bar.red of a block; barrier.cluster.
#include "ptx/barriers.h"

#include "ptx/decode.h"
#include "ptx/lanes.h"
#include "ptx/races.h"

namespace xlstm::ptx {
namespace {

void open_if_complete(Block& block, int id) {
  Barrier& b = block.barriers[id];
  if (b.arrived < b.expected) return;
  if (b.arrived > b.expected)
    fault(b.waiting.empty() ? nullptr : b.waiting[0], nullptr,
          "barrier " + std::to_string(id) + ": more threads than it was told");
  b.arrived = 0;
  for (Warp* w : b.waiting) {
    w->state = State::Running;
    w->barrier = -1;
    receive(*w, b.clock);
    if (!w->vote) continue;
    const Instruction& i = *w->vote;
    w->exec = w->mask;
    w->vote = nullptr;
    if (i.aux == 0) {
      auto* d = out<uint32_t>(*w, i.o[0]);
      lanes(w->mask, [&](int l) { d[l] = b.count; });
    } else {
      set_predicate(*w, i.o[0], (i.aux == 1 ? b.all : b.any) ? 0xffffffffu : 0);
    }
  }
  b.waiting.clear();
  b.clock.clear();
}

void arrive(Warp& w, const Instruction& i, int id, int threads, bool waits) {
  if (id < 0 || id > 15) fault(&w, &i, "barrier " + std::to_string(id));
  Barrier& b = w.block->barriers[id];
  const int expected = threads < 0 ? (w.block->threads + 31) / 32 * 32 : threads;
  if (expected % 32 || expected == 0) fault(&w, &i, "barrier thread count " + std::to_string(expected));
  if (b.arrived && b.expected != expected)
    fault(&w, &i,
          "barrier " + std::to_string(id) + ": " + std::to_string(expected) + " threads, others said " +
              std::to_string(b.expected));
  b.expected = expected;
  b.arrived += 32;
  publish(w, b.clock);
  if (waits) {
    w.state = State::AtBarrier;
    w.barrier = id;
    b.waiting.push_back(&w);
  }
  open_if_complete(*w.block, id);
}

int uniform(Warp& w, const Instruction& i, const Operand& o) {
  const auto* v = in<uint32_t>(w, o);
  const uint32_t first = v[__builtin_ctz(w.exec)];
  lanes(w.exec, [&](int l) {
    if (v[l] != first) fault(&w, &i, "operand differs within the warp");
  });
  return int(first);
}

void block_sync(Warp& w, const Instruction& i) {
  arrive(w, i, uniform(w, i, i.o[0]), i.o.size() > 1 ? uniform(w, i, i.o[1]) : -1, true);
}

void block_arrive(Warp& w, const Instruction& i) { arrive(w, i, uniform(w, i, i.o[0]), uniform(w, i, i.o[1]), false); }

void block_vote(Warp& w, const Instruction& i) {  // d, id, p
  const int id = uniform(w, i, i.o[1]);
  if (id < 0 || id > 15) fault(&w, &i, "barrier " + std::to_string(id));
  Barrier& b = w.block->barriers[id];
  const uint32_t votes = predicate(w, i.o[2]) & w.exec;
  if (!b.arrived) b.any = 0, b.all = 1, b.count = 0;
  b.any |= votes != 0;
  b.all &= votes == w.exec;
  b.count += uint32_t(__builtin_popcount(votes));
  w.vote = &i;
  arrive(w, i, id, -1, true);
}

void cluster_arrive(Warp& w, const Instruction& i) {
  Cluster& c = *w.block->cluster;
  w.cluster_phase = c.phase + 1;
  c.arrived += __builtin_popcount(w.exec);
  Clock& clock = c.clock[c.phase & 1];
  i.aux ? publish_relaxed(w, clock) : publish(w, clock);
  open_cluster_barrier_if_complete(c);
}

void cluster_wait(Warp& w, const Instruction& i) {
  if (!w.cluster_phase) fault(&w, &i, "barrier.cluster.wait without arrive");
  Cluster& c = *w.block->cluster;
  if (c.phase < w.cluster_phase)
    w.state = State::AtClusterBarrier;
  else
    receive(w, c.clock[(w.cluster_phase - 1) & 1]);
}

}  // namespace

void open_cluster_barrier_if_complete(Cluster& c) {
  int alive = 0;
  for (const auto& b : c.blocks)
    for (const auto& w : b->warps) alive += __builtin_popcount(w->alive);
  if (!c.arrived || c.arrived < alive) return;
  c.arrived = 0;
  ++c.phase;
  for (const auto& b : c.blocks)
    for (const auto& w : b->warps)
      if (w->state == State::AtClusterBarrier && c.phase >= w->cluster_phase) {
        w->state = State::Running;
        receive(*w, c.clock[(w->cluster_phase - 1) & 1]);
      }
}

Handler decode_barrier(Decoding& d) {
  Instruction& i = d.i;
  if (!d.is({"bar", "barrier"})) return nullptr;
  i.aligned = true;
  i.results = 0;
  if (d.has("cluster")) {
    if (!d.has("arrive") && !d.has("wait")) d.unknown();
    i.aux = d.has("relaxed");
    return d.has("arrive") ? cluster_arrive : cluster_wait;
  }
  if (d.has("red")) {
    if (i.o.size() != 3) d.unknown();
    d.width(1, 32);
    i.results = 1;
    i.aux = d.has("popc") ? 0 : d.has("and") ? 1 : 2;
    return block_vote;
  }
  for (size_t n = 0; n < i.o.size(); ++n) d.width(n, 32);
  if (d.opcode == "bar.arrive") return block_arrive;
  const bool known = d.opcode == "bar.sync" || d.opcode == "barrier.sync" || d.opcode == "barrier.sync.aligned";
  return known ? block_sync : nullptr;
}

}  // namespace xlstm::ptx
