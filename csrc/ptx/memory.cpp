// memory.cpp - ld, st, atom, red, cp.async, mapa, cvta.
#include "ptx/memory.h"

#include <algorithm>
#include <cstdio>

#include "ptx/allocations.h"
#include "ptx/decode.h"
#include "ptx/lanes.h"

namespace xlstm::ptx {
namespace {

Range recent[64];  // allocations that accesses have hit, by address

std::string hexadecimal(uint64_t v) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

std::string of_lane(int lane) { return "lane " + std::to_string(lane) + ": "; }

Block* shared_block(const Warp& w, const uint8_t* p) {
  const Cluster& c = *w.block->cluster;
  return p >= c.windows && p < c.windows + c.blocks.size() * kWindow ? c.blocks[size_t(p - c.windows) / kWindow].get() : nullptr;
}

}  // namespace

void forget_ranges() {
  for (Range& r : recent) r = Range();
}

uint64_t address(const Warp& w, const Operand& o, int lane) {
  uint64_t a = uint64_t(o.immediate);
  if (o.has_register) {
    if (o.width == 8)
      a += in<uint64_t>(w, o)[lane];
    else
      a = uint32_t(a + in<uint32_t>(w, o)[lane]);
  }
  if (o.parameter) a += reinterpret_cast<uint64_t>(current->parameters.data());
  return a;
}

uint8_t* shared_at(Warp& w, const Instruction& i, Block& b, uint64_t offset, uint32_t bytes, int lane, Access access) {
  if (offset < kSharedStart || offset + bytes > kSharedStart + b.shared_bytes)
    fault(&w, &i,
          of_lane(lane) + std::to_string(bytes) + " bytes at " + std::to_string(int64_t(offset) - kSharedStart) + " of " +
              std::to_string(b.shared_bytes) + " bytes of shared memory");
  if (&b != w.block && b.exited()) fault(&w, &i, "shared memory of a block that has exited");
  if (settings.races) touch_shared(w, i, b, uint32_t(offset), bytes, access);
  return b.window + offset;
}

void check_global(const Warp& w, const Instruction& i, uint64_t at, uint32_t bytes, int lane) {
  Range& r = recent[(at >> 12) & 63];
  if (at >= r.begin && at + bytes <= r.end) return;
  const auto workspace = reinterpret_cast<uint64_t>(current->workspace);
  if (at >= workspace && at + bytes <= workspace + 256) return;
  Range found;
  if (!allocation_before(at, found) || at + bytes > found.end)
    fault(&w, &i,
          of_lane(lane) + std::to_string(bytes) + " bytes at " + hexadecimal(at) +
              " outside every tensor (the last before: " + hexadecimal(found.begin) + " to " + hexadecimal(found.end) + ")");
  r = found;
}

Block& peer(const Warp& w, const Instruction& i, uint64_t rank) {
  Cluster& c = *w.block->cluster;
  if (rank >= c.blocks.size()) fault(&w, &i, "cluster rank " + std::to_string(rank) + " of " + std::to_string(c.blocks.size()));
  return *c.blocks[rank];
}

// A shared address: an offset in this block's window, or (mapa) rank + 1 in the upper byte.
Block& block_of(const Warp& w, const Instruction& i, uint64_t at) { return at >> 24 ? peer(w, i, (at >> 24) - 1) : *w.block; }

uint8_t* resolve(Warp& w, const Instruction& i, uint64_t at, uint32_t bytes, int lane, Access access) {
  if (at % bytes)
    fault(&w, &i, of_lane(lane) + "misaligned address " + hexadecimal(at) + " for " + std::to_string(bytes) + " bytes");
  switch (i.space) {
    case Space::Shared:
      if (at >> 24) fault(&w, &i, "shared::cta access at a shared::cluster address");
      return shared_at(w, i, *w.block, at, bytes, lane, access);
    case Space::SharedCluster:
      return shared_at(w, i, block_of(w, i, at), at & (kWindow - 1), bytes, lane, access);
    case Space::Param: {
      const auto first = reinterpret_cast<uint64_t>(current->parameters.data());
      if (at < first || at + bytes > first + current->kernel->parameter_bytes) fault(&w, &i, "parameter address out of range");
      return reinterpret_cast<uint8_t*>(at);
    }
    default: {
      auto* p = reinterpret_cast<uint8_t*>(at);
      if (Block* b = shared_block(w, p)) {
        if (i.space == Space::Global) fault(&w, &i, "global access at a shared address");
        return shared_at(w, i, *b, uint64_t(p - b->window), bytes, lane, access);
      }
      check_global(w, i, at, bytes, lane);
      if (settings.races) touch_global(w, i, at, bytes, access);
      return p;
    }
  }
}

bool defined(const Warp& w, const uint8_t* p, uint32_t bytes) {
  const Block* b = settings.reads ? shared_block(w, p) : nullptr;
  if (!b) return true;
  const uint8_t* state = b->defined.data() + (p - b->window - kSharedStart);
  return std::all_of(state, state + bytes, [](uint8_t known) { return known; });
}

void set_defined(const Warp& w, const uint8_t* p, uint32_t bytes, bool value) {
  Block* b = settings.reads ? shared_block(w, p) : nullptr;
  if (b) std::memset(b->defined.data() + (p - b->window - kSharedStart), value, bytes);
}

namespace {

// What a load or an atomic means to the race detector beside its data.
enum Order : uint32_t { kWeak = 0, kRelaxed = 1, kAcquire = 2, kRelease = 4, kVolatile = 8 };
bool synchronises(uint32_t order) { return order & (kAcquire | kRelease | kVolatile); }

// Tells the clock of the address, or is told by it: at once if the access is ordered so strongly, else what a fence covers.
template <class Tell>
void tell(Warp& w, uint32_t order, Order strong, const uint8_t* p, Tell* at_once, Tell* by_fence) {
  if (settings.races && order != kWeak) (order & strong ? at_once : by_fence)(w, clock_of(p));
}
void order_after_read(Warp& w, uint32_t order, const uint8_t* p) { tell(w, order, kAcquire, p, receive, receive_relaxed); }
void order_before_write(Warp& w, uint32_t order, const uint8_t* p) { tell(w, order, kRelease, p, publish, publish_relaxed); }

template <class T>
void load(Warp& w, const Instruction& i) {
  const int n = i.n;
  const Access access = synchronises(i.aux) ? Access::Synchronise : Access::Read;
  lanes(w.exec, [&](int l) {
    const uint8_t* p = resolve(w, i, address(w, i.o[n], l), sizeof(T) * n, l, access);
    order_after_read(w, i.aux, p);
    T values[4];
    std::memcpy(values, p, sizeof(T) * n);
    for (int k = 0; k < n; ++k) {
      const Operand& o = i.o[k];
      if (o.kind == Operand::Sink) continue;
      if (o.width == 8)
        out<uint64_t>(w, o)[l] = uint64_t(int64_t(values[k]));
      else
        out<uint32_t>(w, o)[l] = uint32_t(int32_t(values[k]));
      if (settings.reads && !defined(w, p + k * sizeof(T), sizeof(T))) w.defined[o.id] &= ~(1u << l);
    }
  });
  if (i.aux & (kAcquire | kVolatile)) w.yield = true;  // likely a spin
}

template <class T>
void store(Warp& w, const Instruction& i) {
  const int n = i.n;
  const Access access = synchronises(i.aux) ? Access::Synchronise : Access::Write;
  lanes(w.exec, [&](int l) {
    uint8_t* p = resolve(w, i, address(w, i.o[0], l), sizeof(T) * n, l, access);
    order_before_write(w, i.aux, p);
    for (int k = 0; k < n; ++k) {
      const Operand& o = i.o[1 + k];
      const T v = o.width == 8 ? T(in<uint64_t>(w, o)[l]) : T(in<uint32_t>(w, o)[l]);
      std::memcpy(p + k * sizeof(T), &v, sizeof v);
      if (!settings.reads) continue;
      const bool known = o.kind != Operand::Register || w.defined[o.id] >> l & 1;
      if (!known && !shared_block(w, p)) fault(&w, &i, of_lane(l) + "stores a value that nobody wrote");
      set_defined(w, p + k * sizeof(T), sizeof(T), known);
    }
  });
}

enum AtomicOp { kAdd, kMin, kMax, kExchange };

template <class T, AtomicOp Op, bool Returns>
void atomic(Warp& w, const Instruction& i) {
  lanes(w.exec, [&](int l) {
    uint8_t* p = resolve(w, i, address(w, i.o[Returns ? 1 : 0], l), sizeof(T), l, Access::Synchronise);
    order_after_read(w, i.aux | kRelaxed, p);
    order_before_write(w, i.aux | kRelaxed, p);
    if (!defined(w, p, sizeof(T))) fault(&w, &i, of_lane(l) + "atomic on shared memory that nobody wrote");
    T old;
    std::memcpy(&old, p, sizeof old);
    const T v = get<T>(in<T>(w, i.o[Returns ? 2 : 1])[l]);
    const T r = Op == kAdd ? T(old + v) : Op == kMin ? std::min(old, v) : Op == kMax ? std::max(old, v) : v;
    std::memcpy(p, &r, sizeof r);
    if (Returns && i.o[0].kind != Operand::Sink) out<T>(w, i.o[0])[l] = put<T>(old);
  });
}

template <class T>
Handler atomic_of(const Decoding& d, bool returns) {
  if (d.has("add")) return returns ? atomic<T, kAdd, true> : atomic<T, kAdd, false>;
  if (d.has("min")) return returns ? atomic<T, kMin, true> : atomic<T, kMin, false>;
  if (d.has("max")) return returns ? atomic<T, kMax, true> : atomic<T, kMax, false>;
  if (d.has("exch")) return returns ? atomic<T, kExchange, true> : nullptr;
  return nullptr;
}

// ---- cp.async
void land(Warp& w, const Instruction& i, const Copy& c) {
  std::memcpy(c.to, c.from, c.source_size);
  std::memset(c.to + c.source_size, 0, c.size - c.source_size);
  set_defined(w, c.to, c.size, true);
  if (settings.races) touch_shared(w, i, *w.block, uint32_t(c.to - w.block->window), c.size, Access::Write);
}

void copy_async(Warp& w, const Instruction& i) {
  lanes(w.exec, [&](int l) {
    const uint64_t to = address(w, i.o[0], l), from = address(w, i.o[1], l);
    const auto size = uint32_t(i.o[2].immediate);
    uint32_t source = size;
    if (i.o.size() > 3) source = i.o[3].kind == Operand::Immediate ? uint32_t(i.o[3].immediate) : in<uint32_t>(w, i.o[3])[l];
    if (source > size) fault(&w, &i, "cp.async: source size " + std::to_string(source) + " of " + std::to_string(size));
    if (to % size || from % size) fault(&w, &i, of_lane(l) + "cp.async: misaligned, from " + hexadecimal(from));
    const Copy c{shared_at(w, i, *w.block, to, size, l, Access::Write), reinterpret_cast<const uint8_t*>(from), size, source};
    if (source) {
      check_global(w, i, from, source, l);
      if (settings.races) touch_global(w, i, from, source, Access::Read);
    }
    if (!settings.late) return land(w, i, c);
    std::memset(c.to, 0xff, size);  // NaN until it lands
    set_defined(w, c.to, size, false);
    w.open[l].push_back(c);
  });
}

void commit_group(Warp& w, const Instruction&) {
  lanes(w.exec, [&](int l) {
    w.groups[l].push_back(std::move(w.open[l]));
    w.open[l].clear();
  });
}

void wait_group(Warp& w, const Instruction& i) {
  lanes(w.exec, [&](int l) {
    for (; w.groups[l].size() > i.aux; w.groups[l].pop_front())
      for (const Copy& c : w.groups[l].front()) land(w, i, c);
  });
}

void wait_all(Warp& w, const Instruction& i) {
  commit_group(w, i);
  wait_group(w, i);
}

// ---- addresses of peers
void map_shared(Warp& w, const Instruction& i) {
  auto* d = out<uint32_t>(w, i.o[0]);
  const auto *a = in<uint32_t>(w, i.o[1]), *rank = in<uint32_t>(w, i.o[2]);
  lanes(w.exec, [&](int l) {
    if (a[l] >> 24) fault(&w, &i, "mapa of a shared::cluster address");
    peer(w, i, rank[l]);
    d[l] = (rank[l] + 1) << 24 | a[l];
  });
}

void map_generic(Warp& w, const Instruction& i) {
  auto* d = out<uint64_t>(w, i.o[0]);
  const auto* a = in<uint64_t>(w, i.o[1]);
  const auto* rank = in<uint32_t>(w, i.o[2]);
  lanes(w.exec, [&](int l) {
    const uint64_t offset = a[l] - reinterpret_cast<uint64_t>(w.block->window);
    if (offset >= kWindow) fault(&w, &i, "mapa of an address outside this block's shared memory");
    d[l] = reinterpret_cast<uint64_t>(peer(w, i, rank[l]).window) + offset;
  });
}

void shared_to_generic(Warp& w, const Instruction& i) {
  auto* d = out<uint64_t>(w, i.o[0]);
  const auto* a = in<uint64_t>(w, i.o[1]);
  lanes(w.exec, [&](int l) {
    if (a[l] >= kWindow) fault(&w, &i, "cvta.shared of an address that is not this block's");
    d[l] = a[l] + reinterpret_cast<uint64_t>(w.block->window);
  });
}

void generic_to_shared(Warp& w, const Instruction& i) {
  auto* d = out<uint64_t>(w, i.o[0]);
  const auto* a = in<uint64_t>(w, i.o[1]);
  lanes(w.exec, [&](int l) {
    d[l] = a[l] - reinterpret_cast<uint64_t>(w.block->window);
    if (d[l] >= kWindow) fault(&w, &i, "cvta.to.shared of an address outside this block's shared memory");
  });
}

uint64_t unchanged(uint64_t a) { return a; }

Handler decode_access(Decoding& d) {
  Instruction& i = d.i;
  const int b = d.type.bits;
  for (size_t n = 1; n + 1 < d.parts.size(); ++n) {
    const std::string& part = d.parts[n];
    if (part == "global")
      i.space = Space::Global;
    else if (part == "param")
      i.space = Space::Param;
    else if (part == "shared" || part == "shared::cta")
      i.space = Space::Shared;
    else if (part == "shared::cluster")
      i.space = Space::SharedCluster;
    else if (part == "acquire")
      i.aux |= kAcquire;
    else if (part == "release")
      i.aux |= kRelease;
    else if (part == "acq_rel")
      i.aux |= kAcquire | kRelease;
    else if (part == "relaxed")
      i.aux |= kRelaxed;
    else if (part == "volatile")
      i.aux |= kVolatile;
    else if (part == "v2")
      i.n = 2;
    else if (part == "v4")
      i.n = 4;
    else if (part != "gpu" && part != "cta" && part != "cluster" && part != "sys" && part != "nc" && part != "weak" &&
             part != "add" && part != "min" && part != "max" && part != "exch")
      d.unknown();
  }
  if (!i.n) i.n = 1;
  if (d.is({"atom", "red"})) {
    const bool returns = d.op() == "atom";
    d.width(returns ? 2 : 1, b);
    if (returns) d.width(0, b);
    i.results = returns;
    if (b == 32 && (d.type.letter == 'u' || d.type.letter == 'b')) return atomic_of<uint32_t>(d, returns);
    if (b == 32 && d.type.letter == 's') return atomic_of<int32_t>(d, returns);
    if (b == 32 && d.type.letter == 'f' && d.has("add")) return atomic_of<float>(d, returns);
    return nullptr;
  }
  if (i.o.size() != size_t(i.n) + 1) d.unknown();
  const bool loads = d.op() == "ld";
  for (int n = 0; n < i.n; ++n) {
    Operand& o = i.o[loads ? n : 1 + n];
    if (o.kind == Operand::Immediate) o.width = b == 64 ? 8 : 4;
    if (o.kind == Operand::Register && b == 64 && o.width != 8) d.unknown();
  }
  if (loads) {
    i.results = i.n;
    const bool s = d.type.letter == 's';
    if (b == 8) return s ? load<int8_t> : load<uint8_t>;
    if (b == 16) return s ? load<int16_t> : load<uint16_t>;
    if (b == 32) return s ? load<int32_t> : load<uint32_t>;
    return load<uint64_t>;
  }
  i.results = 0;
  i.undefined = Undefined::Store;
  return b == 8 ? store<uint8_t> : b == 16 ? store<uint16_t> : b == 32 ? store<uint32_t> : store<uint64_t>;
}

Handler decode_copy(Decoding& d) {
  Instruction& i = d.i;
  i.results = 0;
  if (d.opcode == "cp.async.commit_group") return commit_group;
  if (d.opcode == "cp.async.wait_all") return wait_all;
  if (d.opcode == "cp.async.wait_group") {
    i.aux = uint32_t(i.o[0].immediate);
    return wait_group;
  }
  const bool cg = d.opcode == "cp.async.cg.shared.global";
  if (!cg && d.opcode != "cp.async.ca.shared.global") return nullptr;
  const int64_t size = i.o[2].immediate;
  if (i.o[2].kind != Operand::Immediate || (size != 16 && (cg || (size != 4 && size != 8)))) d.unknown();
  i.space = Space::Global;
  return copy_async;
}

}  // namespace

Handler decode_memory(Decoding& d) {
  if (d.is({"ld", "st", "atom", "red"}) && !d.has("async")) return decode_access(d);
  if (d.op() == "cp" && d.has("async")) return decode_copy(d);
  if (d.opcode == "mapa.shared::cluster.u32") return d.with({32, 32, 32}, map_shared);
  if (d.opcode == "mapa.u64") return d.with({64, 64, 32}, map_generic);
  if (d.op() != "cvta") return nullptr;
  d.widths({64, 64});
  if (d.opcode == "cvta.shared.u64") return shared_to_generic;
  if (d.opcode == "cvta.to.shared.u64") return generic_to_shared;
  if (d.opcode == "cvta.to.global.u64" || d.opcode == "cvta.global.u64" || d.opcode == "cvta.param.u64")
    return unary<uint64_t, uint64_t, unchanged>;
  return nullptr;
}

}  // namespace xlstm::ptx
