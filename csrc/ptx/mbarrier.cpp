// mbarrier.cpp - mbarrier objects, and st.async, which writes a peer's shared memory and completes bytes on its mbarrier.
#include "ptx/barriers.h"
#include "ptx/decode.h"
#include "ptx/lanes.h"
#include "ptx/memory.h"

namespace xlstm::ptx {
namespace {

// 64 bits: expected 0-19, pending 20-39, bytes on their way 40-60 (signed), phase 61, a tag 62-63.
struct MBarrier {
  int64_t expected, pending, bytes;
  uint64_t phase;
};

MBarrier read(const Warp& w, const Instruction& i, const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  if (v >> 62 != 1) fault(&w, &i, "mbarrier not initialised");
  return {int64_t(v & 0xfffff), int64_t(v >> 20 & 0xfffff), int64_t(v << 3) >> 43, v >> 61 & 1};
}

void write(uint8_t* p, MBarrier b) {
  if (b.pending == 0 && b.bytes == 0) {
    b.phase ^= 1;
    b.pending = b.expected;
  }
  const uint64_t v =
      1ull << 62 | b.phase << 61 | (uint64_t(b.bytes) & 0x1fffff) << 40 | uint64_t(b.pending) << 20 | uint64_t(b.expected);
  std::memcpy(p, &v, 8);
}

void initialise(Warp& w, const Instruction& i) {  // [address], count
  const auto* count = in<uint32_t>(w, i.o[1]);
  lanes(w.exec, [&](int l) {
    if (count[l] < 1 || count[l] > 0xfffff) fault(&w, &i, "mbarrier count " + std::to_string(count[l]));
    uint8_t* p = resolve(w, i, address(w, i.o[0], l), 8, l, Access::Synchronise);
    write(p, {count[l], count[l], 0, 0});
    set_defined(w, p, 8, true);
  });
}

template <bool Expects>
void arrive(Warp& w, const Instruction& i) {  // _, [address], bytes
  lanes(w.exec, [&](int l) {
    uint8_t* p = resolve(w, i, address(w, i.o[1], l), 8, l, Access::Synchronise);
    MBarrier b = read(w, i, p);
    if (Expects) b.bytes += in<uint32_t>(w, i.o[2])[l];
    if (b.pending <= 0) fault(&w, &i, "mbarrier: more arrivals than its count");
    --b.pending;
    if (settings.races) publish(w, clock_of(p));
    write(p, b);
  });
}

void try_wait(Warp& w, const Instruction& i) {  // p, [address], parity
  const auto* parity = in<uint32_t>(w, i.o[2]);
  uint32_t done = 0;
  lanes(w.exec, [&](int l) {
    const uint8_t* p = resolve(w, i, address(w, i.o[1], l), 8, l, Access::Synchronise);
    if (parity[l] > 1) fault(&w, &i, "mbarrier parity " + std::to_string(parity[l]));
    if (read(w, i, p).phase == parity[l]) return;
    done |= 1u << l;
    if (settings.races) receive(w, clock_of(p));
  });
  set_predicate(w, i.o[0], done);
  if (done != w.exec) w.yield = true;
}

void store_async(Warp& w, const Instruction& i) {  // [address], values, [mbarrier]
  const int n = i.n;
  lanes(w.exec, [&](int l) {
    const uint64_t to = address(w, i.o[0], l), barrier = address(w, i.o[1 + n], l);
    Delivery d{};
    d.bytes = 4 * uint32_t(n);
    if (to % d.bytes || barrier % 8) fault(&w, &i, "st.async: misaligned");
    d.to = &block_of(w, i, to);
    d.offset = uint32_t(to & (kWindow - 1));
    d.barrier = uint32_t(barrier & (kWindow - 1));
    d.by = &i;
    if (d.to != &block_of(w, i, barrier)) fault(&w, &i, "st.async: data and mbarrier in different blocks");
    shared_at(w, i, *d.to, d.offset, d.bytes, l, Access::Synchronise);
    shared_at(w, i, *d.to, d.barrier, 8, l, Access::Synchronise);
    for (int k = 0; k < n; ++k) std::memcpy(d.data + 4 * k, &in<uint32_t>(w, i.o[1 + k])[l], 4);
    note_issue(w, d);
    Cluster& c = *w.block->cluster;
    c.flying.push_back(d);
    if (!settings.late) deliver(c, c.flying.size() - 1);
  });
}

}  // namespace

void deliver(Cluster& c, size_t which) {
  const Delivery d = std::move(c.flying[which]);
  c.flying.erase(c.flying.begin() + long(which));
  const Warp& any = *d.to->warps[0];
  if (d.to->exited()) fault(&any, d.by, "st.async lands in a block that has exited");
  uint8_t *to = d.to->window + d.offset, *barrier = d.to->window + d.barrier;
  if (settings.races) note_delivery(d, clock_of(barrier));
  std::memcpy(to, d.data, d.bytes);
  set_defined(any, to, d.bytes, true);
  MBarrier b = read(any, *d.by, barrier);
  b.bytes -= d.bytes;
  write(barrier, b);
}

Handler decode_mbarrier(Decoding& d) {
  Instruction& i = d.i;
  if (d.op() == "st" && d.has("async")) {
    if (d.type.bits != 32 || !d.has("mbarrier::complete_tx::bytes") || !d.has("shared::cluster")) d.unknown();
    i.space = Space::SharedCluster;
    i.n = d.has("v4") ? 4 : d.has("v2") ? 2 : 1;
    i.results = 0;
    for (size_t n = 0; n < i.n; ++n) d.width(1 + n, 32);
    return store_async;
  }
  if (d.op() != "mbarrier") return nullptr;
  i.space = d.has("shared::cluster") ? Space::SharedCluster : Space::Shared;
  i.results = 0;
  if (d.has("init")) {
    d.width(1, 32);
    return initialise;
  }
  if (d.has("arrive")) {
    if (i.o[0].kind != Operand::Sink || i.o.size() != (d.has("expect_tx") ? 3u : 2u)) d.unknown();
    if (!d.has("expect_tx")) return arrive<false>;
    d.width(2, 32);
    return arrive<true>;
  }
  if (d.has("try_wait") && d.has("parity") && i.o.size() == 3) {
    d.width(2, 32);
    i.results = 1;
    return try_wait;
  }
  return nullptr;
}

}  // namespace xlstm::ptx
