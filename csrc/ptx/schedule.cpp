// schedule.cpp - which warp runs next. The blocks of a cluster, and all blocks of a cooperative grid, are alive together; other
// blocks run one after another. Every choice comes from the seed.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "ptx/barriers.h"
#include "ptx/lanes.h"
#include "ptx/memory.h"

namespace xlstm::ptx {

Settings settings;
Launch* current = nullptr;
std::mt19937_64 dice;

void fault(const Warp* w, const Instruction* i, const std::string& what) {
  std::string s = what;
  if (w && !i && w->pc > 0 && size_t(w->pc - 1) < w->kernel->code.size()) i = &w->kernel->code[size_t(w->pc - 1)];
  if (i) s += ": `" + i->text + "`";
  if (i && i->place >= 0) s += " at " + current->kernel->places[size_t(i->place)];
  if (w) {
    char text[120];
    std::snprintf(text, sizeof text, ", block (%u,%u,%u) warp %d lanes %08x of %08x", w->block->index[0], w->block->index[1],
                  w->block->index[2], w->index, w->exec, w->alive);
    s += text;
  }
  throw Fault(s);
}

void Warp::regroup() {
  if (mask) others.push_back({pc, mask});
  int low = 0x7fffffff;
  for (const Group& g : others) low = std::min(low, g.pc);
  mask = 0;
  next_pc = 0x7fffffff;
  size_t kept = 0;
  for (const Group& g : others) {
    if (g.pc == low) {
      mask |= g.mask;
    } else {
      next_pc = std::min(next_pc, g.pc);
      others[kept++] = g;
    }
  }
  others.resize(kept);
  pc = low;
}

namespace {

uint32_t special(const std::string& name, const Warp& w, const Launch& launch, uint32_t lane) {
  const Block& b = *w.block;
  const uint32_t thread = uint32_t(w.index) * 32 + lane;
  const auto workspace = reinterpret_cast<uint64_t>(launch.workspace);
  if (name == "%tid.x") return thread % launch.block[0];
  if (name == "%tid.y") return thread / launch.block[0] % launch.block[1];
  if (name == "%tid.z") return thread / launch.block[0] / launch.block[1];
  if (name == "%laneid") return lane;
  if (name == "%warpid") return uint32_t(w.index);
  if (name == "%nwarpid") return uint32_t(b.threads + 31) / 32;
  if (name == "%smid") return b.index[0] % uint32_t(settings.processors);
  if (name == "%cluster_ctarank") return b.rank;
  if (name == "%cluster_nctarank") return launch.cluster[0] * launch.cluster[1] * launch.cluster[2];
  if (name == "%clusterid.x") return b.index[0] / launch.cluster[0];
  if (name == "%envreg1") return uint32_t(workspace >> 32);  // cooperative groups read the grid's workspace from these two
  if (name == "%envreg2") return uint32_t(workspace);
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return uint32_t((2ull << lane) - 1);
  if (name == "%lanemask_eq") return 1u << lane;
  const int axis = name.back() - 'x';  // %ntid, %ctaid, %nctaid
  if (name.compare(0, 5, "%ntid") == 0) return launch.block[axis];
  if (name.compare(0, 6, "%ctaid") == 0) return b.index[axis];
  return launch.grid[axis];
}

void start_warp(Warp& w, Block& b, const Launch& launch, int index, uint32_t serial) {
  const Kernel& k = *launch.kernel;
  w.kernel = &k;
  w.block = &b;
  w.index = index;
  w.serial = serial;
  w.registers.assign(k.register_words, 0x7fdeadbe);  // a NaN: nothing is zero by accident
  w.base[0] = w.registers.data();
  w.base[1] = const_cast<uint32_t*>(k.constants.data());
  if (settings.reads) w.defined.assign(k.register_count, 0);
  for (int l = 0; l < 32; ++l)
    if (index * 32 + l < b.threads) w.alive |= 1u << l;
  w.mask = w.alive;
  for (size_t n = 0; n < k.specials.size(); ++n) {
    for (uint32_t l = 0; l < 32; ++l) w.registers[k.specials[n].second + l] = special(k.specials[n].first, w, launch, l);
    if (settings.reads) w.defined[k.special_ids[n]] = 0xffffffffu;
  }
}

// ---- reads of registers that nobody wrote
uint32_t defined_lanes(const Warp& w, const Operand& o) {
  const bool read = o.kind == Operand::Register || o.kind == Operand::Predicate || (o.kind == Operand::Address && o.has_register);
  return read ? w.defined[o.id] : 0xffffffffu;
}

void need_defined(const Warp& w, const Instruction& i, const Operand& o) {
  const uint32_t missing = w.exec & ~defined_lanes(w, o);
  if (missing) fault(&w, &i, "lane " + std::to_string(__builtin_ctz(missing)) + " uses a value that nobody wrote");
}

// Checks what the instruction reads and marks what it writes. Of a select only the side that is taken counts.
void track(Warp& w, const Instruction& i) {
  const uint32_t exec = w.exec;
  uint32_t known = exec;
  switch (i.undefined) {
    case Undefined::Pass:
      for (size_t n = i.results; n < i.o.size(); ++n) known &= defined_lanes(w, i.o[n]);
      break;
    case Undefined::Select: {
      need_defined(w, i, i.o[3]);
      const uint32_t p = predicate(w, i.o[3]);
      known &= (p & defined_lanes(w, i.o[1])) | (~p & defined_lanes(w, i.o[2]));
      break;
    }
    case Undefined::Store:
      need_defined(w, i, i.o[0]);
      break;
    case Undefined::Report:
      for (size_t n = i.results; n < i.o.size(); ++n) need_defined(w, i, i.o[n]);
      break;
  }
  for (size_t n = 0; n < i.results; ++n) {
    const Operand& o = i.o[n];
    if (o.kind == Operand::Register || o.kind == Operand::Predicate) w.defined[o.id] = (w.defined[o.id] & ~exec) | known;
  }
}

// Runs a warp for at most `budget` instructions; returns how many it ran.
int64_t slice(Warp& w, int64_t budget) {
  const Instruction* code = w.kernel->code.data();
  const int end = int(w.kernel->code.size());
  int64_t n = 0;
  w.yield = false;
  while (n < budget) {
    if (w.pc >= end) fault(&w, nullptr, "ran past the end of the kernel");
    const Instruction& i = code[w.pc++];
    w.exec = w.mask;
    if (i.guard >= 0) {
      if (settings.reads && (w.mask & ~w.defined[i.guard_id])) fault(&w, &i, "the guard is a predicate that nobody wrote");
      w.exec &= i.guard_negated ? ~w.registers[size_t(i.guard)] : w.registers[size_t(i.guard)];
    }
    ++n;
    if (w.exec) {
      if (i.aligned && w.exec != w.alive) fault(&w, &i, "an aligned instruction, and not all lanes of the warp are here");
      if (settings.reads) track(w, i);
      i.run(w, i);
    }
    if (w.pc >= w.next_pc) w.regroup();
    if (w.yield || w.state != State::Running) break;
  }
  return n;
}

std::string deadlock(const std::vector<Warp*>& warps) {
  std::string s = "deadlock: no warp can go on";
  int shown = 0;
  for (const Warp* w : warps) {
    if (w->state == State::Done || ++shown > 12) continue;
    const Instruction& i = w->kernel->code[std::min(size_t(w->pc), w->kernel->code.size() - 1)];
    s += "; block " + std::to_string(w->block->index[0]) + " warp " + std::to_string(w->index) + " ";
    s += w->state == State::AtBarrier          ? "waits at barrier " + std::to_string(w->barrier)
         : w->state == State::AtClusterBarrier ? "waits at the cluster's barrier"
                                               : "spins at `" + i.text + "`";
    if (i.place >= 0) s += " (" + w->kernel->places[size_t(i.place)] + ")";
  }
  return s;
}

// Who gets no turn now: for a random stretch one warp or all warps of one block, until nobody else does more than spin.
class Starving {
 public:
  explicit Starving(const std::vector<Warp*>& all) : warps(all) {}

  void next_round() {
    if (!settings.starve || rounds-- > 0) return;
    rounds = 20 + dice() % 400;
    const Warp& chosen = *warps[dice() % warps.size()];
    block = chosen.block;
    warp = dice() % 4 ? &chosen : nullptr;
  }
  bool holds(const Warp& w) const { return settings.starve && (warp ? &w == warp : w.block == block); }

 private:
  const std::vector<Warp*>& warps;
  const Warp* warp = nullptr;
  const Block* block = nullptr;
  int64_t rounds = 0;
};

using Clusters = std::vector<std::unique_ptr<Cluster>>;

void run_together(Clusters& set) {
  constexpr int kSpin = 40;                 // a turn this short that ends at no barrier is no progress
  constexpr int kPatience = 3;              // rounds of nothing but spinning before the starved one is let in
  constexpr uint64_t kDeadlocked = 20000;   // and before the launch is given up
  constexpr int64_t kEndless = 50'000'000;  // instructions of a warp that never waits; the tests' longest run is far shorter
  constexpr uint64_t kRound = 1'000;        // nanoseconds of a round; of one of nothing but spinning, so that a wait that
  constexpr uint64_t kIdle = 1'000'000;     // measures its time gives up before the launch is
  std::vector<Warp*> warps, ready;
  for (const auto& c : set)
    for (const auto& b : c->blocks)
      for (const auto& w : b->warps) warps.push_back(w.get());
  Starving starving(warps);
  uint64_t idle = 0;
  int spun = 0;
  while (true) {
    starving.next_round();
    ready.clear();
    bool left = false;
    for (Warp* w : warps) {
      left |= w->state != State::Done;
      if (w->state == State::Running) ready.push_back(w);
    }
    if (!left) break;
    std::shuffle(ready.begin(), ready.end(), dice);
    bool progress = false;
    for (Warp* w : ready) {
      if (w->state != State::Running || (starving.holds(*w) && spun < kPatience)) continue;
      const int64_t ran = slice(*w, 1 + int64_t(dice() % 4000));
      progress |= ran >= kSpin || w->state != State::Running;
      w->uninterrupted = w->yield || w->state != State::Running ? 0 : w->uninterrupted + ran;
      if (w->uninterrupted > kEndless) fault(w, &w->kernel->code[size_t(w->pc)], "a loop without end: it waits for nothing");
    }
    bool delivered = false;
    for (const auto& c : set)
      while (!c->flying.empty() && (!progress || dice() % 4)) {
        deliver(*c, dice() % c->flying.size());
        delivered = true;
      }
    spun = progress ? 0 : spun + 1;
    idle = progress || delivered ? 0 : idle + 1;
    current->nanoseconds += idle ? kIdle : kRound;
    if (idle > (ready.empty() ? 1 : kDeadlocked)) throw Fault(deadlock(warps));
  }
  for (const auto& c : set)
    if (!c->flying.empty()) throw Fault("st.async still on its way when its cluster had exited");
}

std::unique_ptr<Cluster> start_cluster(Launch& launch, uint64_t first_block, uint32_t shared) {
  const uint64_t size = uint64_t(launch.cluster[0]) * launch.cluster[1] * launch.cluster[2];
  auto c = std::make_unique<Cluster>();
  void* p = mmap(nullptr, size * kWindow, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Fault("no memory for the blocks' shared memory");
  c->windows = static_cast<uint8_t*>(p);
  for (uint64_t rank = 0; rank < size; ++rank) {
    c->blocks.push_back(std::make_unique<Block>());
    Block& b = *c->blocks.back();
    const uint64_t n = first_block + rank;
    b.index[0] = uint32_t(n % launch.grid[0]);
    b.index[1] = uint32_t(n / launch.grid[0] % launch.grid[1]);
    b.index[2] = uint32_t(n / launch.grid[0] / launch.grid[1]);
    b.rank = uint32_t(rank);
    b.cluster = c.get();
    b.window = c->windows + rank * kWindow;
    b.shared_bytes = shared;
    b.threads = int(launch.block[0] * launch.block[1] * launch.block[2]);
    std::memset(b.window + kSharedStart, 0xff, shared);  // NaN
    if (settings.reads) b.defined.assign(shared, 0);
    for (int w = 0; w < (b.threads + 31) / 32; ++w) {
      b.warps.push_back(std::make_unique<Warp>());
      start_warp(*b.warps.back(), b, launch, w, launch.first_serial + launch.set_warps++);
    }
  }
  return c;
}

// The blocks that are alive together, and their memory.
class Set {
 public:
  ~Set() { close(); }
  void close() {
    for (const auto& c : clusters) munmap(c->windows, c->blocks.size() * kWindow);
    clusters.clear();
  }
  Clusters clusters;
};

}  // namespace

void run(Launch& launch) {
  const struct Current {
    explicit Current(Launch* l) { current = l; }
    ~Current() { current = nullptr; }
  } here(&launch);
  forget_ranges();
  forget_races();
  dice.seed(settings.seed);
  const Kernel& k = *launch.kernel;
  const bool dynamic = k.uses_dynamic || launch.dynamic_shared;
  const uint32_t shared = dynamic ? k.dynamic_offset + launch.dynamic_shared - kSharedStart : k.static_shared;
  const uint64_t size = uint64_t(launch.cluster[0]) * launch.cluster[1] * launch.cluster[2];
  const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  if (size > 1 && (launch.cluster[1] != 1 || launch.cluster[2] != 1)) throw Fault("only one-dimensional clusters are known");
  std::vector<uint64_t> order(blocks / size);
  for (size_t n = 0; n < order.size(); ++n) order[n] = n * size;
  std::shuffle(order.begin(), order.end(), dice);
  Set set;
  for (const uint64_t first : order) {
    set.clusters.push_back(start_cluster(launch, first, shared));
    if (launch.cooperative) continue;
    run_together(set.clusters);
    set.close();
    launch.first_serial += launch.set_warps;
    launch.set_warps = 0;
  }
  if (launch.cooperative) run_together(set.clusters);
}

}  // namespace xlstm::ptx
