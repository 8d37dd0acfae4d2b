// report.cpp - the sentences in which the executor speaks about threads, places and deadlocks.
#include <cstdio>

#include "simt/state.h"

namespace xlstm::simt {
namespace {
std::string ranges(const std::vector<uint32_t>& sorted) {  // 0-31,40
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t j = i;
    while (j + 1 < sorted.size() && sorted[j + 1] == sorted[j] + 1) ++j;
    text += (text.empty() ? "" : ",") + std::to_string(sorted[i]) + (j > i ? "-" + std::to_string(sorted[j]) : "");
    i = j + 1;
  }
  return text;
}

std::string waiting_state(const Fiber* fiber) {
  const Block& block = *fiber->block;
  const std::string waits_in = fiber->waits_in;
  if (fiber->status == Status::Ready) return "spin on " + waits_in + " at " + to_string(fiber->waits_at);
  std::string text = "wait in " + waits_in;
  if (waits_in == "bar.sync") {
    const Barrier& b = block.barriers[fiber->waits_for];
    text += " " + std::to_string(fiber->waits_for) + " (" + std::to_string(b.arrived) + " of " + std::to_string(b.needed) +
            " threads arrived)";
  } else if (waits_in == "__syncthreads") {
    text += "() (" + std::to_string(block.barriers[0].arrived) + " of " + std::to_string(block.alive) + " live threads arrived)";
  } else if (waits_in == "mbarrier.try_wait") {
    text += " parity " + std::to_string(fiber->waits_for >> 32) + " on the barrier at shared offset " +
            std::to_string(uint32_t(fiber->waits_for));
  } else if (fiber->waits_for) {
    text += " (mask " + hexadecimal(unsigned(fiber->waits_for)) + ")";
  }
  return text + " at " + to_string(fiber->waits_at);
}
}  // namespace

std::string to_string(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }
std::string to_string(uint3 v) { return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")"; }
std::string hexadecimal(unsigned v) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", v);
  return text;
}
std::string describe(const Fiber* fiber) {
  return "thread " + to_string(fiber->thread) + " of block " + to_string(fiber->block->index);
}

std::string schedule_description() {
  static const char* const names[] = {"fifo", "reverse", "lifo", "random", "starve"};
  std::string text = std::string("schedule ") + names[int(machine.options.order)];
  if (machine.options.order >= Order::Random || machine.options.landing == Landing::Random)
    text += ", seed " + std::to_string(machine.options.seed);
  return text;
}

std::string waiting_threads() {
  std::string text;
  for (const Block& block : machine.blocks) {
    std::map<std::string, std::vector<uint32_t>> waiting;
    std::vector<uint32_t> gone;
    for (unsigned i = 0; i < machine.fibers; ++i) {
      const Fiber* fiber = machine.pool[i].get();
      if (fiber->block != &block) continue;
      if (fiber->status == Status::Exited)
        gone.push_back(fiber->linear);
      else
        waiting[waiting_state(fiber)].push_back(fiber->linear);
    }
    const std::string name = "  block " + to_string(block.index) + ": threads ";
    for (const auto& [state, threads] : waiting) text += name + ranges(threads) + " " + state + "\n";
    if (!waiting.empty() && !gone.empty()) text += name + ranges(gone) + " have exited\n";
  }
  return text;
}

std::string deadlock_report() {
  return std::string("simt: deadlock in ") + machine.kernel + " (" + schedule_description() + "): no thread can run\n" +
         waiting_threads();
}
}  // namespace xlstm::simt
