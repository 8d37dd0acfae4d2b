// mlstm.h - the chunkwise mLSTM over sequences on a CPU, forward and backward: the equations M4-M7 of csrc/mlstm/README.md as
// they stand there, chunk after chunk of one head of one sequence. That is one task, so its bits depend on nothing else: not on
// threads, nor on what else is in the batch.
#pragma once
#include <cstdint>

#include "common/view.h"
#include "cpu/isa.h"
#include "cpu/mlstm_options.h"

namespace xlstm::cpu {

enum class Storage {
  kReal,
  kBFloat16,
  kFloat16
};  // how q, k, v, h and their gradients lie in memory; kReal: as they are computed

// What forward and backward have in common.
template <typename Real>
struct MlstmInputs : MlstmOptions<Real> {
  int64_t B = 0, S = 0, NH = 0, DHQK = 0, DHHV = 0;
  int64_t L = 0;                        // steps of a chunk; 0: `chunk_length` of every sequence
  int64_t N = 0;                        // sequences: B, or those between the borders
  const int32_t* cu_seqlens = nullptr;  // (N + 1) borders of sequences on S, with B = 1; or null
  Storage storage = Storage::kReal;
  View<> q, k, v, i, f;                                    // (B, S, NH, D) of storage, (B, S, NH) of Real
  const Real *C0 = nullptr, *n0 = nullptr, *m0 = nullptr;  // (N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH); or null: fresh
  Real* borders = nullptr;  // (N, NH, `border_numbers`) from forward to backward, or null: backward computes them once more
};
template <class R, typename Real>
void read(R& r, MlstmInputs<Real>& p) {
  r("B", p.B)("S", p.S)("NH", p.NH)("DHQK", p.DHQK)("DHHV", p.DHHV)("L", p.L)("N", p.N)("cu_seqlens", p.cu_seqlens)("storage",
                                                                                                                    p.storage);
  r("options", static_cast<MlstmOptions<Real>&>(p));
  r("q", p.q)("k", p.k)("v", p.v)("i", p.i)("f", p.f)("C0", p.C0)("n0", p.n0)("m0", p.m0)("borders", p.borders);
}

// Results are contiguous.
template <typename Real>
struct MlstmForward : MlstmInputs<Real> {
  View<> h;                                       // (B, S, NH, DHHV)
  Real *C = nullptr, *n = nullptr, *m = nullptr;  // the state after the last step, or null
  Real* dot = nullptr;                            // (B, S, NH) s q.n
};
template <class R, typename Real>
void read(R& r, MlstmForward<Real>& p) {
  read(r, static_cast<MlstmInputs<Real>&>(p));
  r("h", p.h)("C", p.C)("n", p.n)("m", p.m)("dot", p.dot);
}

template <typename Real>
struct MlstmBackward : MlstmInputs<Real> {
  bool exact = true;  // false: the normaliser is a constant
  View<> h, dh;
  const Real* dot = nullptr;                            // of the forward
  const Real *dC = nullptr, *dn = nullptr;              // of the state after the last step, or null
  View<> dq, dk, dv, di, df;                            // gates' are Real
  Real *dC0 = nullptr, *dn0 = nullptr, *dm0 = nullptr;  // written when a state is given
};
template <class R, typename Real>
void read(R& r, MlstmBackward<Real>& p) {
  read(r, static_cast<MlstmInputs<Real>&>(p));
  r("exact", p.exact)("h", p.h)("dh", p.dh)("dot", p.dot)("dC", p.dC)("dn", p.dn);
  r("dq", p.dq)("dk", p.dk)("dv", p.dv)("di", p.di)("df", p.df)("dC0", p.dC0)("dn0", p.dn0)("dm0", p.dm0);
}

// How long a chunk is where nobody says it: of 32, 64, 128 and 256 steps the length with which forward and backward need the
// fewest multiply-adds, the longer of two that are alike. A wide head has no short chunks, because what is done once for every
// chunk grows with the state (docs/kernel-notes.md).
inline int64_t chunk_length(int64_t steps, int64_t DHQK, int64_t DHHV) {
  const int64_t wider = DHQK > DHHV ? DHQK : DHHV;
  int64_t chosen = 0, fewest = 0;
  for (int64_t L = wider <= 32 ? 32 : wider < 192 ? 64 : 128; L <= 256; L *= 2) {
    const int64_t whole = steps / L, rest = steps % L;
    const int64_t first = whole ? L : rest, last = rest ? rest : L;
    const int64_t with_states = 2 * (steps - first) + 3 * (steps - last);  // the first reads none, nobody reads that of the last
    const int64_t pairs = (whole * L * L + rest * rest) / 2;
    const int64_t products = with_states * DHQK * DHHV + pairs * (3 * DHQK + 2 * DHHV);
    if (chosen == 0 || products <= fewest) chosen = L, fewest = products;
  }
  return chosen;
}

inline int64_t chunks_of(int64_t steps, int64_t L) { return (steps + L - 1) / L; }

// The states before all chunks of a head but the first: for each C, n, and m with room to a whole cache line.
constexpr int64_t kBorderRoom = 16;
inline int64_t border_size(int64_t DHQK, int64_t DHHV) { return DHQK * DHHV + DHQK + kBorderRoom; }

// How many numbers that is, where such states may be kept: head dims are whole vectors of every instruction set.
inline int64_t border_numbers(int64_t S, int64_t DHQK, int64_t DHHV, int64_t L) {
  if (S == 0 || DHQK % kBorderRoom || DHHV % kBorderRoom) return 0;
  return (chunks_of(S, L ? L : chunk_length(S, DHQK, DHHV)) - 1) * border_size(DHQK, DHHV);
}

// clang-format off
template <typename Real> void mlstm_forward(const MlstmForward<Real>& p, int threads);
template <typename Real> void mlstm_backward(const MlstmBackward<Real>& p, int threads);

// One head of one sequence (task = sequence NH + head), compiled once per instruction set.
XLSTM_IN_EVERY_ISA(
  template <typename Real> void mlstm_forward_task(const MlstmForward<Real>& p, int64_t task);
  template <typename Real> void mlstm_backward_task(const MlstmBackward<Real>& p, int64_t task);
)
// clang-format on

}  // namespace xlstm::cpu
