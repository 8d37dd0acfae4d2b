// trace.cpp - GCC's -fsanitize=thread calls __tsan_readN(address) or __tsan_writeN(address) before every load and store.
// Kernels are compiled with it and libtsan is not linked: the entry points below are ours.
#include "simt/trace.h"

#include <dlfcn.h>

#include <cstdio>
#include <tuple>

#include "simt/cuda_builtins.h"
#include "simt/race_detector.h"

namespace xlstm::simt {

bool tracing = false;

namespace {
std::vector<Place> places(1);
std::map<std::tuple<const char*, int, const void*>, uint32_t> place_numbers;

std::string source_lines(const void* code) {  // "kernel.cu:7", or "helper.cuh:3 (inlined at kernel.cu:7)"
  Dl_info module;
  if (!dladdr(code, &module) || !module.dli_fname) return "an unknown line";
  char text[2048];
  std::snprintf(text, sizeof text, "addr2line -i -e '%s' 0x%lx 2>/dev/null", module.dli_fname,
                static_cast<unsigned long>(static_cast<const char*>(code) - static_cast<const char*>(module.dli_fbase) - 1));
  std::vector<std::string> lines;
  if (FILE* pipe = popen(text, "r")) {
    while (std::fgets(text, sizeof text, pipe)) {
      std::string line = text;
      line.erase(line.find_last_not_of(" \n") + 1);
      const size_t note = line.find(" (discriminator");
      lines.push_back(line.substr(0, note));
    }
    pclose(pipe);
  }
  if (lines.empty()) return "an unknown line (addr2line is missing)";
  std::string all = lines[0];
  for (size_t i = 1; i < lines.size(); ++i)
    if (lines[i].find("/simt/kernel_api.h") == std::string::npos && lines[i].find("/c++/") == std::string::npos &&
        lines[i] != lines[i - 1])
      all += (i == 1 ? " (inlined at " : ", ") + lines[i];
  if (all.find(" (inlined") != std::string::npos) all += ")";
  return all;
}
}  // namespace

uint32_t intern(const Place& place) {
  static const void* last_code = nullptr;
  static uint32_t last_number = 0;
  if (place.code && place.code == last_code) return last_number;
  const auto [entry, fresh] =
      place_numbers.emplace(std::make_tuple(place.site.file, place.site.line, place.code), uint32_t(places.size()));
  if (fresh) places.push_back(place);
  if (place.code) last_code = place.code, last_number = entry->second;
  return entry->second;
}

std::string describe_place(uint32_t number) {
  static std::map<uint32_t, std::string> known;
  const auto found = known.find(number);
  if (found != known.end()) return found->second;
  const Place& place = places[number];
  return known[number] = place.code ? source_lines(place.code) : to_string(place.site);
}

void record(const void* p, size_t bytes, unsigned flags, const Place& place) {
  const Fiber* fiber = self;
  if (!fiber) return;
  const Machine& m = machine;
  const auto* address = static_cast<const char*>(p);
  const auto within = [&](const void* start, size_t size) {
    return address >= static_cast<const char*>(start) && address < static_cast<const char*>(start) + size;
  };
  if (within(fiber->stack, m.pool_stack_bytes) || within(m.closure, m.closure_bytes)) return;  // registers and parameters
  if (within(&threadIdx, sizeof threadIdx) || within(&blockIdx, sizeof blockIdx) || within(&blockDim, sizeof blockDim) ||
      within(&gridDim, sizeof gridDim))
    return;
  const Space space = within(m.slab, m.slab_used) ? Space::Shared : Space::Global;
  const Access access{address, bytes, flags, intern(place), space};
  if (m.options.races) race_access(access);
  if (m.options.profile && !(flags & kSilent)) profile_access(access);
}

void trace_launch_begins() {
  if ((machine.options.races) && !instrumented())
    throw Error("simt: races: this module's kernels are not instrumented; use the module _simt_trace");
  tracing = machine.options.races || machine.options.profile;
  forget_flags();
  race_launch_begins();
  profile_launch_begins();
}
void trace_launch_ends() { profile_launch_ends(); }
void trace_domain_begins() {
  race_domain_begins();
  profile_domain_begins();
}
void trace_domain_ends() { profile_domain_ends(); }
void trace_warp_synchronised(Warp& warp) {
  if (machine.options.profile) profile_flush(warp);
}
void trace_block_synchronised(Block& block) {
  if (machine.options.profile)
    for (int i = 0; i < block.warp_count; ++i) profile_flush(block.warps[i]);
}

}  // namespace xlstm::simt

#define HOOK(name, bytes, flags)                                                                                              \
  extern "C" __attribute__((visibility("hidden"))) void name(void* p) {                                                       \
    if (xlstm::simt::tracing) xlstm::simt::record(p, bytes, flags, xlstm::simt::Place{{"", 0}, __builtin_return_address(0)}); \
  }
#define HOOKS(n)                                       \
  HOOK(__tsan_read##n, n, xlstm::simt::kRead)          \
  HOOK(__tsan_write##n, n, xlstm::simt::kWrite)        \
  HOOK(__tsan_volatile_read##n, n, xlstm::simt::kRead) \
  HOOK(__tsan_volatile_write##n, n, xlstm::simt::kWrite)
#define UNALIGNED_HOOKS(n)                              \
  HOOK(__tsan_unaligned_read##n, n, xlstm::simt::kRead) \
  HOOK(__tsan_unaligned_write##n, n, xlstm::simt::kWrite)
// clang-format off
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
UNALIGNED_HOOKS(2) UNALIGNED_HOOKS(4) UNALIGNED_HOOKS(8) UNALIGNED_HOOKS(16)
// clang-format on
#define RANGE_HOOK(name, flags)                                                                       \
  extern "C" __attribute__((visibility("hidden"))) void name(void* p, unsigned long bytes) {          \
    if (xlstm::simt::tracing && bytes)                                                                \
      xlstm::simt::record(p, bytes, flags, xlstm::simt::Place{{"", 0}, __builtin_return_address(0)}); \
  }
    // clang-format off
RANGE_HOOK(__tsan_read_range, xlstm::simt::kRead)
RANGE_HOOK(__tsan_write_range, xlstm::simt::kWrite)
extern "C" {
  // clang-format on
  __attribute__((visibility("hidden"))) void __tsan_init() {}
  __attribute__((visibility("hidden"))) void __tsan_func_entry(void*) {}
  __attribute__((visibility("hidden"))) void __tsan_func_exit() {}
  __attribute__((visibility("hidden"))) void __tsan_vptr_update(void**, void*) {}
  __attribute__((visibility("hidden"))) void __tsan_vptr_read(void**) {}
  // The guard of a function-local static in host code.
  __attribute__((visibility("hidden"))) unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
  }
}
