// control.cpp - branches, exits, fences, the call of __assertfail. Lanes that part at a branch run apart, the lowest pc first,
// and join where they meet.
#include "ptx/barriers.h"
#include "ptx/decode.h"
#include "ptx/lanes.h"
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

// __assertfail(message, file, line, function, size of a character)
void assertion_failed(Warp& w, const Instruction& i) {
  const int lane = __builtin_ctz(w.exec);
  const auto text = [&](size_t n) { return std::string(reinterpret_cast<const char*>(in<uint64_t>(w, i.o[n])[lane])); };
  fault(&w, &i,
        text(2) + ":" + std::to_string(in<uint32_t>(w, i.o[3])[lane]) + ": " + text(4) + ": assertion `" + text(1) +
            "` failed, lane " + std::to_string(lane));
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
  if (d.op() == "call" && d.i.o.size() == 6 && d.i.o[1].width == 8 && d.i.o[2].width == 8 && d.i.o[4].width == 8)
    return assertion_failed;
  if (d.op() == "nanosleep") return pause;
  if (d.is({"membar", "fence"})) return order;
  d.i.results = 1;
  return nullptr;
}

}  // namespace xlstm::ptx
