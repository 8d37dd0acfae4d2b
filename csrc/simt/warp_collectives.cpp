// warp_collectives.cpp - the meeting of a warp's lanes: __syncwarp, shuffles, votes, and the rule that all lanes named in the
// mask come, from one source line, before any goes on.
#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {

void warp_collective(int kind, const char* name, unsigned mask, void* payload, CollectiveBody body, const Site& site) {
  Fiber* me = self;
  Warp* warp = me->warp;
  const unsigned bit = 1u << me->lane;
  const auto here = [&] { return std::string(name) + " at " + to_string(site); };
  if (!(mask & bit)) fail(here() + ": mask " + hexadecimal(mask) + " does not name the calling lane " + std::to_string(me->lane));
  if (mask & ~warp->live)
    fail(here() + ": mask " + hexadecimal(mask) +
         " names lanes that have exited or do not exist: " + hexadecimal(mask & ~warp->live));
  Collective* c = nullptr;
  for (int i = 0; i < warp->collectives_open && !c; ++i) {
    Collective& open = warp->collectives[i];
    if (open.mask == mask)
      c = &open;
    else if (open.mask & mask)
      fail(here() + " (mask " + hexadecimal(mask) + ") meets " + open.name + " (mask " + hexadecimal(open.mask) + ") at " +
           to_string(open.site) + ": overlapping masks");
  }
  if (!c) {
    if (warp->collectives_open == 8) fail(here() + ": more than 8 disjoint masks wait in one warp");
    c = &warp->collectives[warp->collectives_open++];
    c->kind = kind, c->mask = mask, c->arrived = 0, c->name = name, c->site = site;
  } else if (c->kind != kind || (machine.options.strict_sites && (c->site.line != site.line || c->site.file != site.file))) {
    fail("divergent warp: lane " + std::to_string(me->lane) + " is in " + here() + " while lanes " + hexadecimal(c->arrived) +
         " are in " + c->name + " at " + to_string(c->site));
  }
  c->lanes[me->lane] = payload;
  c->arrived |= bit;
  if (c->arrived != mask) return block_on(name, mask, site);

  ++machine.counters.warp_collectives;
  machine.idle_yields = 0;
  if (body) body(c->lanes, mask, *c, warp);
  order_warp(warp, mask);
  if (mask == warp->live) trace_warp_synchronised(*warp);
  *c = warp->collectives[--warp->collectives_open];
  const bool backwards = machine.options.order == Order::Reverse;
  for (unsigned rest = mask & ~bit; rest;) {
    const int lane = backwards ? 31 - __builtin_clz(rest) : __builtin_ctz(rest);
    rest &= ~(1u << lane);
    make_ready(warp->lanes[lane]);
  }
}

unsigned lane_id() { return self->lane; }

void warp_barrier(unsigned mask, const Site& site) { warp_collective(kSyncwarp, "__syncwarp", mask, nullptr, nullptr, site); }

namespace {
struct Shuffled {
  uint64_t value, result;
  int source;
};
struct Ballot {
  int predicate;
  unsigned result;
};

void exchange(void* const* lanes, unsigned mask, const Collective& c, Warp*) {
  ++machine.counters.shuffles;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    auto* mine = static_cast<Shuffled*>(lanes[__builtin_ctz(rest)]);
    if (mine->source < 0 || mine->source > 31 || !(mask >> mine->source & 1))
      fail("shuffle at " + to_string(c.site) + " reads lane " + std::to_string(mine->source) + ", which is not in mask " +
           hexadecimal(mask));
    mine->result = static_cast<Shuffled*>(lanes[mine->source])->value;
  }
}

void count_votes(void* const* lanes, unsigned mask, const Collective&, Warp*) {
  unsigned votes = 0;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (static_cast<Ballot*>(lanes[lane])->predicate) votes |= 1u << lane;
  }
  for (unsigned rest = mask; rest; rest &= rest - 1) static_cast<Ballot*>(lanes[__builtin_ctz(rest)])->result = votes;
}
}  // namespace

uint64_t shuffle(unsigned mask, uint64_t value, int source, const Site& site) {
  Shuffled payload{value, 0, source};
  warp_collective(kShuffle, "shuffle", mask, &payload, exchange, site);
  return payload.result;
}

unsigned ballot(unsigned mask, int predicate, const Site& site) {
  Ballot payload{predicate, 0};
  warp_collective(kBallot, "ballot/any/all", mask, &payload, count_votes, site);
  return payload.result;
}

}  // namespace xlstm::simt
