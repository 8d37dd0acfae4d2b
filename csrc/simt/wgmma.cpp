// wgmma.cpp - wgmma.mma_async m64nNk16 for bf16: operands through shared-memory descriptors, accumulators NaN until the wait.
// Descriptor layouts follow CUTLASS (mma_traits_sm90_gmma.hpp, make_gmma_desc); they are checked against nothing else here.
#include <algorithm>

#include "simt/race_detector.h"
#include "simt/state.h"

namespace xlstm::simt {

struct WgmmaOperation {
  int n;
  bool a_in_registers, transpose_a, transpose_b, done = false;
  int scale_d;
  uint64_t desc_a, desc_b;
  Block* block;
  std::shared_ptr<WgmmaOperation> previous;  // on the same accumulators
  Site site;
  std::vector<float> d;
  std::vector<uint32_t> a;
};

namespace {

// Accumulator fragment (PTX ISA 9.7.15.5.1.1.1): thread t of the warpgroup, element i
int fragment_row(int t, int i) { return 16 * (t >> 5) + (t & 31) / 4 + 8 * (i >> 1 & 1); }
int fragment_column(int t, int i) { return 8 * (i >> 2) + 2 * (t & 3) + (i & 1); }

// One element of an operand. K-major, in 16-byte units: ((8,m),2):((W,SBO),1), without swizzle ((8,m),2):((1,SBO),LBO);
// MN-major: ((W,m),(8,k)):((1,LBO),(W,SBO)), without swizzle ((1,m),(8,k)):((x,SBO),(1,LBO)); W is the swizzle in 16-byte units.
float element(const WgmmaOperation& o, uint64_t desc, bool mn_major, int mn, int k) {
  const auto start = uint32_t(desc & 0x3fff) << 4, lbo = uint32_t(desc >> 16 & 0x3fff) << 4,
             sbo = uint32_t(desc >> 32 & 0x3fff) << 4;
  const int mode = int(desc >> 62), units = mode == 0 ? 1 : mode == 1 ? 8 : mode == 2 ? 4 : 2;
  uint32_t offset;
  if (!mn_major) {
    offset = mn % 8 * units * 16 + mn / 8 * sbo + (mode == 0 ? k / 8 * lbo : k / 8 * 16) + k % 8 * 2;
  } else if (mode == 0) {
    offset = mn / 8 * sbo + k % 8 * 16 + k / 8 * lbo + mn % 8 * 2;
  } else {
    const int chunk = mn / 8;
    offset = chunk % units * 16 + chunk / units * lbo + k % 8 * units * 16 + k / 8 * sbo + mn % 8 * 2;
  }
  uint32_t at = start + offset;
  at ^= (at >> 7 & uint32_t(mode == 0 ? 0 : units - 1)) << 4;
  const char* p = o.block->dynamic_memory + (at - kSharedWindow);
  if (!in_shared(o.block, p, 2)) fail("wgmma at " + to_string(o.site) + ": the descriptor reaches outside shared memory");
  race_async_read(p, 2, o.site);
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

void execute(WgmmaOperation& o) {
  if (o.done) return;
  if (o.previous) {
    execute(*o.previous);
    o.d = o.previous->d;
    o.previous.reset();
  }
  if (!o.scale_d) std::fill(o.d.begin(), o.d.end(), 0.f);
  std::vector<float> a(64 * 16), b(16 * size_t(o.n));
  if (o.a_in_registers) {
    for (int t = 0; t < 128; ++t)
      for (int i = 0; i < 8; ++i) {
        const uint32_t word = (o.a[t * 4 + i / 2] >> i % 2 * 16 & 0xffff) << 16;
        std::memcpy(&a[fragment_row(t, i) * 16 + fragment_column(t, i)], &word, 4);
      }
  } else {
    for (int m = 0; m < 64; ++m)
      for (int k = 0; k < 16; ++k) a[m * 16 + k] = element(o, o.desc_a, o.transpose_a, m, k);
  }
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < o.n; ++n) b[size_t(k) * o.n + n] = element(o, o.desc_b, o.transpose_b, n, k);
  multiply_accumulate(a.data(), b.data(), o.d.data(), 64, o.n, 16);
  o.done = true;
  machine.counters.mma += 4 * o.n / 8;  // as many m16n8k16
}

struct Call {
  float* d;
  const uint32_t* a;
  uint64_t desc_a, desc_b;
};

}  // namespace

void wgmma(float* d, int n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b, bool transpose_a, bool transpose_b, int scale_d,
           const Site& site) {
  require_architecture(90, "wgmma", site);
  Fiber* me = self;
  const unsigned group = me->linear >> 7;
  if (int((group + 1) * 128) > me->block->threads) fail("wgmma at " + to_string(site) + ": the warpgroup is not complete");
  Warpgroup& meeting = me->block->warpgroups[group];
  Call call{d, a, desc_a, desc_b};
  if (meeting.arrived && (meeting.site.line != site.line || meeting.site.file != site.file || meeting.n != n))
    fail("wgmma at " + to_string(site) + " while other warps of the warpgroup are at " + to_string(meeting.site));
  meeting.site = site;
  meeting.n = n;
  meeting.calls[me->linear & 127] = &call;
  if (++meeting.arrived < 128) return block_on("wgmma.mma_async", 0, site);

  meeting.arrived = 0;  // the last to arrive issues the operation for all
  machine.idle_yields = 0;
  auto operation = std::make_shared<WgmmaOperation>();
  operation->n = n;
  operation->a_in_registers = a != nullptr;
  operation->transpose_a = transpose_a;
  operation->transpose_b = transpose_b;
  operation->scale_d = scale_d;
  operation->desc_a = desc_a;
  operation->desc_b = desc_b;
  operation->block = me->block;
  operation->site = site;
  const uint32_t first = me->index - (me->linear & 127);
  for (const PendingWgmma& pending : machine.pool[first]->wgmmas)
    if (pending.d == static_cast<Call*>(meeting.calls[0])->d) operation->previous = pending.operation;
  if (!operation->previous) operation->d.resize(size_t(64) * n);
  if (a) operation->a.resize(512);
  for (int t = 0; t < 128; ++t) {
    const auto* c = static_cast<Call*>(meeting.calls[t]);
    Fiber* fiber = machine.pool[first + t].get();
    if (c->desc_a != desc_a || c->desc_b != desc_b)
      fail("wgmma at " + to_string(site) + ": threads of the warpgroup pass different descriptors");
    if (!operation->previous)
      for (int i = 0; i < n / 2; ++i) operation->d[size_t(fragment_row(t, i)) * n + fragment_column(t, i)] = c->d[i];
    if (a) std::memcpy(&operation->a[t * 4], c->a, 16);
    std::memset(c->d, 0xff, size_t(n) * 2);  // in flight
    fiber->wgmmas.push_back({operation, c->d, n, fiber->wgmma_group});
    if (fiber != me) make_ready(fiber);
  }
  if (machine.options.landing == Landing::Early) execute(*operation);
}

void wgmma_commit() { ++self->wgmma_group; }

void wgmma_wait(int groups) {
  auto& pending = self->wgmmas;
  const int t = int(self->linear & 127);
  size_t done = 0;
  while (done < pending.size() && pending[done].group + uint32_t(groups) < self->wgmma_group) {
    const PendingWgmma& p = pending[done++];
    execute(*p.operation);
    bool used_later = false;
    for (size_t i = done; i < pending.size(); ++i) used_later |= pending[i].d == p.d;
    if (used_later) continue;
    for (int i = 0; i < p.n / 2; ++i) p.d[i] = p.operation->d[size_t(fragment_row(t, i)) * p.n + fragment_column(t, i)];
  }
  pending.erase(pending.begin(), pending.begin() + done);
}

}  // namespace xlstm::simt
