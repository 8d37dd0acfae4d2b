// control.cpp - branches, exits, fences. Lanes that part at a branch run apart, the lowest pc first, and join where they meet.
#include "ptx/barriers.h"
#include "ptx/decode.h"
#include "ptx/races.h"

namespace xlstm::ptx {
namespace {

void branch(Warp& w, const Instruction& i) {
  if (w.exec != w.mask) {
    w.others.push_back({w.pc, w.mask & ~w.exec});
    if (w.pc < w.next_pc) w.next_pc = w.pc;
    w.mask = w.exec;
  }
  w.pc = i.target;
}

void leave(Warp& w, const Instruction& i) {
  for (int l = 0; l < 32; ++l)
    if (w.exec >> l & 1 && (!w.open[l].empty() || !w.groups[l].empty())) {
      for (const auto& group : w.groups[l])
        for (const Copy& c : group)
          if (c.source_size) fault(&w, &i, "lane " + std::to_string(l) + " exits with a cp.async on its way");
      for (const Copy& c : w.open[l])
        if (c.source_size) fault(&w, &i, "lane " + std::to_string(l) + " exits with a cp.async on its way");
    }
  w.alive &= ~w.exec;
  w.mask &= ~w.exec;
  if (w.mask) return;
  if (w.others.empty()) {
    w.state = State::Done;
    open_cluster_barrier_if_complete(*w.block->cluster);
  } else {
    w.pc = 0x7ffffffe;  // beyond every group that is left: regroup
  }
}

void trap(Warp& w, const Instruction& i) { fault(&w, &i, "trap"); }
void pause(Warp& w, const Instruction&) { w.yield = true; }
void order(Warp& w, const Instruction&) { fence(w); }

}  // namespace

Handler decode_control(Decoding& d) {
  d.i.results = 0;
  if (d.op() == "bra") return branch;
  if (d.is({"ret", "exit"})) return leave;
  if (d.op() == "trap") return trap;
  if (d.op() == "nanosleep") return pause;
  if (d.is({"membar", "fence"})) return order;
  d.i.results = 1;
  return nullptr;
}

}  // namespace xlstm::ptx
