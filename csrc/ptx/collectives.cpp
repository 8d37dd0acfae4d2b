// collectives.cpp - shfl.sync, vote.sync, bar.warp.sync: every lane that the member mask names must be here.
#include "ptx/decode.h"
#include "ptx/lanes.h"

namespace xlstm::ptx {
namespace {

void need_members(Warp& w, const Instruction& i, const Operand& mask) {
  const auto* m = in<uint32_t>(w, mask);
  lanes(w.exec, [&](int l) {
    if (!(m[l] >> l & 1)) fault(&w, &i, "lane " + std::to_string(l) + " is not in its own member mask");
    if ((m[l] & w.alive) != (w.exec & m[l])) fault(&w, &i, "not all lanes of the member mask are here");
  });
}

enum Mode { kUp, kDown, kButterfly, kIndex };

template <Mode M>
void shuffle(Warp& w, const Instruction& i) {  // d{|p}, a, b, c, members
  const bool with_predicate = i.aux;
  const int k = with_predicate ? 2 : 1;
  need_members(w, i, i.o[k + 3]);
  const auto *a = in<uint32_t>(w, i.o[k]), *b = in<uint32_t>(w, i.o[k + 1]), *c = in<uint32_t>(w, i.o[k + 2]);
  auto* d = out<uint32_t>(w, i.o[0]);
  uint32_t old[32], in_range = 0;
  std::memcpy(old, a, sizeof old);
  lanes(w.exec, [&](int l) {
    const int shift = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
    const int least = l & segment, limit = least | (clamp & ~segment);
    int from = 0;
    bool ok = false;
    if (M == kUp) from = l - shift, ok = from >= limit;
    if (M == kDown) from = l + shift, ok = from <= limit;
    if (M == kButterfly) from = l ^ shift, ok = from <= limit;
    if (M == kIndex) from = least | (shift & ~segment), ok = from <= limit;
    if (!ok) from = l;
    if (!(w.exec >> from & 1))
      fault(&w, &i, "lane " + std::to_string(l) + " reads lane " + std::to_string(from) + ", which is not here");
    d[l] = old[from];
    in_range |= uint32_t(ok) << l;
  });
  if (with_predicate) set_predicate(w, i.o[1], in_range);
}

void vote_any(Warp& w, const Instruction& i) {
  need_members(w, i, i.o[2]);
  set_predicate(w, i.o[0], predicate(w, i.o[1]) & w.exec ? 0xffffffffu : 0);
}

void vote_all(Warp& w, const Instruction& i) {
  need_members(w, i, i.o[2]);
  set_predicate(w, i.o[0], (predicate(w, i.o[1]) & w.exec) == w.exec ? 0xffffffffu : 0);
}

void vote_ballot(Warp& w, const Instruction& i) {
  need_members(w, i, i.o[2]);
  const uint32_t votes = predicate(w, i.o[1]) & w.exec;
  auto* d = out<uint32_t>(w, i.o[0]);
  lanes(w.exec, [&](int l) { d[l] = votes; });
}

void warp_sync(Warp& w, const Instruction& i) { need_members(w, i, i.o[0]); }

}  // namespace

Handler decode_collective(Decoding& d) {
  Instruction& i = d.i;
  if (d.op() == "shfl" && d.has("sync") && d.type.bits == 32) {
    i.aux = i.o.size() == 6;  // d|p
    i.results = i.aux ? 2 : 1;
    d.width(0, 32);
    for (size_t n = i.results; n < i.results + 4u; ++n) d.width(n, 32);
    if (d.has("up")) return shuffle<kUp>;
    if (d.has("down")) return shuffle<kDown>;
    if (d.has("bfly")) return shuffle<kButterfly>;
    if (d.has("idx")) return shuffle<kIndex>;
  }
  if (d.op() == "vote" && d.has("sync")) {
    d.width(2, 32);
    if (d.has("any")) return vote_any;
    if (d.has("all")) return vote_all;
    if (d.has("ballot")) return vote_ballot;
  }
  if (d.opcode == "bar.warp.sync") {
    i.results = 0;
    d.width(0, 32);
    return warp_sync;
  }
  return nullptr;
}

}  // namespace xlstm::ptx
