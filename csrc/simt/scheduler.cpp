// scheduler.cpp - fibers on one OS thread: who runs next, what happens when nobody can, and how a launch is carried out.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>

#include "simt/cuda_builtins.h"
#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

XLSTM_SIMT_DEFINE_SWITCH

__attribute__((visibility("hidden"))) uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace xlstm::simt {

Machine machine;
Fiber* self = nullptr;

Options& options() {
  static Options current;
  return current;
}

namespace {

void enter(Fiber* fiber) {
  self = fiber;
  threadIdx = fiber->thread;
  blockIdx = fiber->block->index;
}

void jump(Fiber* from, Fiber* to, [[maybe_unused]] bool from_dies) {
#ifdef XLSTM_SIMT_ASAN
  const size_t bytes = to == &machine.main ? machine.main_stack_bytes : machine.pool_stack_bytes;
  __sanitizer_start_switch_fiber(from_dies ? nullptr : &from->asan_fake_stack, to->stack, bytes);
#endif
  switch_context(from->context, to->context);
#ifdef XLSTM_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from->asan_fake_stack, nullptr, nullptr);
#endif
}

void end_hold() {
  Starvation& s = machine.starvation;
  s.holding = false;
  s.left = 1 + next_random() % (uint64_t(1) << next_random() % 12);
  for (Fiber* fiber : s.held) machine.ready[machine.ready_tail++ & machine.ready_mask] = fiber;
  s.held.clear();
}

void begin_hold() {
  Machine& m = machine;
  Starvation& s = m.starvation;
  const Fiber* fiber = m.pool[(next_random() >> 11) % m.fibers].get();
  switch ((next_random() >> 11) % 4) {
    case 0:
      s.victim = fiber;
      break;
    case 1:
      if (m.blocks.size() > 1) {
        s.victim = fiber->block;
        break;
      }
      [[fallthrough]];
    default:
      s.victim = fiber->warp;
  }
  s.holding = true;
  s.left = next_random() >> 20 & 1 ? ~uint64_t(0) : m.fibers << next_random() % 6;
}

// Any thread but those held back. They go on when nobody else can, when all others spin, or after a while.
Fiber* take_unless_held() {
  Machine& m = machine;
  Starvation& s = m.starvation;
  while (true) {
    const uint32_t count = m.ready_tail - m.ready_head;
    if (s.holding && (s.left == 0 || count == 0 || m.idle_yields > 8ull * count + 64)) {
      if (s.held.empty() && count == 0 && !land_one()) return nullptr;
      end_hold();
      continue;
    }
    if (count == 0) {
      if (!land_one()) return nullptr;
      continue;
    }
    if (!s.holding && s.left == 0) begin_hold();
    const uint32_t pick = m.ready_head + uint32_t((next_random() >> 11) % count);
    std::swap(m.ready[pick & m.ready_mask], m.ready[m.ready_head & m.ready_mask]);
    Fiber* fiber = m.ready[m.ready_head++ & m.ready_mask];
    if (s.applies_to(fiber)) {
      s.held.push_back(fiber);
      continue;
    }
    if (s.left != ~uint64_t(0)) --s.left;
    return fiber;
  }
}

Fiber* take_ready() {
  Machine& m = machine;
  if (m.options.order == Order::Starve) return take_unless_held();
  while (m.ready_head == m.ready_tail)
    if (!land_one()) return nullptr;  // copies land when nothing else can happen
  switch (m.options.order) {
    case Order::Lifo:
      return m.ready[--m.ready_tail & m.ready_mask];
    case Order::Random: {
      const uint32_t count = m.ready_tail - m.ready_head;
      const uint32_t pick = m.ready_head + uint32_t((next_random() >> 11) % count);
      std::swap(m.ready[pick & m.ready_mask], m.ready[m.ready_head & m.ready_mask]);
      break;
    }
    default:
      break;
  }
  return m.ready[m.ready_head++ & m.ready_mask];
}

void thread_exits() {
  Fiber* me = self;
  if (!me->copies.empty())
    fail("the thread exits with " + std::to_string(me->copies.size()) + " cp.async in flight, the first of " +
         to_string(me->copies[0].site) + ": the block's shared memory is not its own any more when they land");
  if (!me->wgmmas.empty()) fail("the thread exits with wgmma operations in flight");
  if (!me->bulk_stores.empty()) bulk_commit(), bulk_wait(0);
  const Warp& warp = *me->warp;
  for (int i = 0; i < warp.collectives_open; ++i) {
    const Collective& c = warp.collectives[i];
    if (c.mask >> me->lane & 1)
      fail("the thread exits while lanes " + hexadecimal(c.arrived) + " wait for it in " + c.name + " at " + to_string(c.site));
  }
  me->status = Status::Exited;
  me->warp->live &= ~(1u << me->lane);
  --me->block->alive;
  ++machine.exited;
  machine.idle_yields = 0;
  leave_barriers(me);
}

void fiber_main() {
#ifdef XLSTM_SIMT_ASAN
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!machine.main.stack) {
    machine.main.stack = static_cast<char*>(const_cast<void*>(bottom));
    machine.main_stack_bytes = bytes;
  }
#endif
  machine.invoke(machine.closure);
  thread_exits();
  switch_out(true);
  std::abort();  // an exited fiber never runs again
}

constexpr size_t kKeptStacks = 4096;  // between launches: a stack and its guard are two of the 65530 maps Linux gives a process

void free_stacks(size_t kept) {
  Machine& m = machine;
  for (size_t i = kept; i < m.pool.size(); ++i) {
#ifdef XLSTM_SIMT_ASAN
    __asan_unpoison_memory_region(m.pool[i]->stack, m.pool_stack_bytes);
#endif
    munmap(m.pool[i]->stack - kGuardPage, m.pool_stack_bytes + kGuardPage);
  }
  if (kept < m.pool.size()) m.pool.resize(kept);
}

void grow_pool(unsigned count, size_t stack_bytes) {
  Machine& m = machine;
  if (m.pool_stack_bytes < stack_bytes) {
    free_stacks(0);
    m.pool_stack_bytes = (stack_bytes + kGuardPage - 1) / kGuardPage * kGuardPage;
  }
  while (m.pool.size() < count) {
    void* memory = mmap(nullptr, m.pool_stack_bytes + kGuardPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // An overflow faults and does not touch the neighbour.
    if (memory == MAP_FAILED || mprotect(memory, kGuardPage, PROT_NONE) != 0) {
      if (memory != MAP_FAILED) munmap(memory, m.pool_stack_bytes + kGuardPage);
      throw Error("simt: no memory for the stacks of " + std::to_string(count) +
                  " threads, each two memory maps (sysctl vm.max_map_count)");
    }
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = static_cast<char*>(memory) + kGuardPage;
    m.pool.push_back(std::move(fiber));
  }
}

void start(Fiber* fiber) {
#ifdef XLSTM_SIMT_ASAN
  __asan_unpoison_memory_region(fiber->stack, machine.pool_stack_bytes);
  fiber->asan_fake_stack = nullptr;
#endif
  const size_t colour = fiber->index * 5 % 61 * 64;  // spreads the stacks, all a power of two apart, over the cache sets
  make_context(fiber->context, fiber->stack, machine.pool_stack_bytes - colour, fiber_main);
}

void reset(Fiber* f, unsigned index, unsigned linear, Block& block) {
  const uint3 shape = machine.block_shape;
  f->index = index;
  f->linear = linear;
  f->lane = linear & 31;
  f->block = &block;
  f->warp = &block.warps[linear >> 5];
  f->thread = uint3{linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y};
  f->status = Status::Ready;
  f->copies.clear(), f->wgmmas.clear(), f->bulk_stores.clear(), f->known.clear();
  f->copy_group = f->cluster_phase = f->wgmma_group = f->bulk_group = 0;
  f->epoch = f->warp_synced = 1;
  f->fence_epoch = f->async_epoch = 0;
  f->warp->lanes[f->lane] = f;
  f->warp->live |= 1u << f->lane;
  start(f);
}

uint3 block_index(uint64_t domain, unsigned rank) {
  const uint3 grid = machine.grid, cluster = machine.cluster;
  if (machine.config.cooperative) return {rank % grid.x, rank / grid.x % grid.y, rank / grid.x / grid.y};
  const uint64_t nx = grid.x / cluster.x, ny = grid.y / cluster.y;
  return {unsigned(domain % nx) * cluster.x + rank % cluster.x,
          unsigned(domain / nx % ny) * cluster.y + rank / cluster.x % cluster.y,
          unsigned(domain / nx / ny) * cluster.z + rank / cluster.x / cluster.y};
}

void run_domain(uint64_t domain, unsigned blocks) {
  Machine& m = machine;
  const unsigned threads = m.block_shape.x * m.block_shape.y * m.block_shape.z, warps = (threads + 31) / 32;
  m.domain = domain;
  m.random = m.options.seed * 0x9e3779b97f4a7c15ull + domain * 0xbf58476d1ce4e5b9ull + 1;
  for (int i = 0; i < 4; ++i) next_random();
  m.fibers = blocks * threads;
  m.exited = 0;
  m.failed = false;
  m.idle_yields = 0;
  m.in_flight.clear(), m.mbarrier_waiters.clear(), m.mbarrier_clocks.clear();
  m.cluster_barrier = Barrier{};
  m.starvation = Starvation{};
  m.starvation.left = next_random() % (uint64_t(1) << next_random() % 12);
  m.blocks.assign(blocks, Block{});
  m.warps.resize(size_t(blocks) * warps);
  grow_pool(m.fibers, m.options.stack_bytes);
  uint32_t ring = 64;
  while (ring < m.fibers + 1) ring *= 2;
  m.ready.assign(ring, nullptr);
  m.ready_mask = ring - 1;
  m.ready_head = m.ready_tail = 0;
  prepare_shared_memory(blocks);
  for (unsigned i = 0; i < blocks; ++i) {
    Block& block = m.blocks[i];
    block.index = block_index(domain, i);
    block.rank = i;
    block.threads = block.alive = int(threads);
    block.warps = &m.warps[size_t(i) * warps];
    block.warp_count = int(warps);
    for (unsigned k = 0; k < warps; ++k) {
      Warp& warp = block.warps[k];
      warp.block = &block;
      warp.index = i * warps + k;
      warp.live = 0;
      warp.collectives_open = 0;
      warp.epoch = 1;
      warp.known.clear();
    }
    for (unsigned t = 0; t < threads; ++t) reset(m.pool[i * threads + t].get(), i * threads + t, t, block);
  }
  const bool backwards = m.options.order == Order::Reverse || m.options.order == Order::Lifo;
  for (unsigned i = 0; i < m.fibers; ++i) make_ready(m.pool[backwards ? m.fibers - 1 - i : i].get());
  trace_domain_begins();
  m.counters.blocks += blocks;
  m.counters.threads += m.fibers;
  Fiber* first = take_ready();
  enter(first);
  jump(&m.main, first, false);
  self = nullptr;
  if (m.failed) {
    trace_domain_ends();
    throw Error(m.error);
  }
  if (m.exited != m.fibers) {
    trace_domain_ends();
    throw Error(deadlock_report());
  }
  check_canaries();
  trace_domain_ends();
  race_domain_ends();
}

}  // namespace

Machine::~Machine() {
#ifdef XLSTM_SIMT_ASAN
  if (slab) __asan_unpoison_memory_region(slab, slab_capacity);
#endif
  std::free(slab);
  free_stacks(0);
}

uint64_t next_random() {
  uint64_t& s = machine.random;
  s ^= s << 13, s ^= s >> 7, s ^= s << 17;
  return s;
}

bool lands_now() {
  const Landing landing = machine.options.landing;
  return landing == Landing::Early || (landing == Landing::Random && (next_random() >> 20 & 1));
}

void make_ready(Fiber* fiber) {
  fiber->status = Status::Ready;
  machine.ready[machine.ready_tail++ & machine.ready_mask] = fiber;
}

void switch_out(bool dies) {
  Fiber *me = self, *next = take_ready();
  if (next == me) return;
  ++machine.counters.switches;
  if (!next) {  // nobody can run: the launch is over, or it is a deadlock
    jump(me, &machine.main, dies);
    return;
  }
  enter(next);
  jump(me, next, dies);
}

void block_on(const char* what, int64_t detail, const Site& site) {
  self->status = Status::Blocked;
  self->waits_in = what;
  self->waits_for = detail;
  self->waits_at = site;
  switch_out();
}

void fail(const std::string& message) {
  if (!self) throw Error("simt: " + message);
  machine.failed = true;
  machine.error =
      std::string("simt: in ") + machine.kernel + ", " + describe(self) + " (" + schedule_description() + "): " + message;
  Fiber* me = self;
  self = nullptr;
  jump(me, &machine.main, false);  // the fiber is abandoned and its stack recycled
  std::abort();
}

void spin(const char* instruction, const Site& site) {
  self->waits_in = instruction;
  self->waits_at = site;
  yield();
}

void yield() {
  Machine& m = machine;
  if (++m.idle_yields > 2000ull * (m.fibers - m.exited) && !land_one())
    fail("livelock: every thread that can run is spinning (waiting for another block needs a cooperative or a cluster launch)\n" +
         waiting_threads());
  if (m.options.order == Order::Lifo)
    m.ready[--m.ready_head & m.ready_mask] = self;  // behind everybody else
  else
    make_ready(self);
  switch_out();
}

void run(const LaunchConfig& config, const char* kernel, Invoke invoke, const void* closure, size_t closure_bytes) {
  static std::recursive_mutex one_at_a_time;
  const std::lock_guard<std::recursive_mutex> lock(one_at_a_time);
  if (self) fail(std::string("a kernel cannot launch a kernel (") + kernel + ")");
  Machine& m = machine;
  m.options = options();
  m.architecture = &architecture(m.options.architecture);
  check_launch(config, kernel, *m.architecture);
  const auto shape = [](dim3 d) { return uint3{d.x, d.y, d.z}; };
  m.config = config;
  m.kernel = kernel;
  m.invoke = invoke;
  m.closure = closure;
  m.closure_bytes = closure_bytes;
  m.grid = shape(config.grid), m.block_shape = shape(config.block), m.cluster = shape(config.cluster);
  m.statics.clear();
  m.static_used = 0;
  m.counters = Counters{};
  m.main.stack = nullptr;
  blockDim = m.block_shape;
  gridDim = m.grid;
  const uint64_t blocks = uint64_t(m.grid.x) * m.grid.y * m.grid.z;
  const uint64_t per_domain = config.cooperative ? blocks : uint64_t(m.cluster.x) * m.cluster.y * m.cluster.z;
  const uint64_t domains = blocks / per_domain;
  const bool last_first = m.options.order == Order::Reverse || (m.options.order == Order::Random && m.options.seed % 2 == 0);
  const struct KeepFew {
    ~KeepFew() { free_stacks(kKeptStacks); }
  } keep_few;
  trace_launch_begins();
  for (uint64_t i = 0; i < domains; ++i) run_domain(last_first ? domains - 1 - i : i, unsigned(per_domain));
  trace_launch_ends();
}

}  // namespace xlstm::simt
