// mlstm.h - the chunkwise mLSTM over sequences on a CPU, forward and backward: the equations M4-M7 of csrc/mlstm/README.md as
// they stand there, chunk after chunk of one head of one sequence. That is one task, so its bits depend on nothing else: not on
// threads, nor on what else is in the batch.
#pragma once
#include <cstdint>

namespace xlstm::cpu {

enum class Storage {
  kReal,
  kBFloat16,
  kFloat16
};  // how q, k, v, h and their gradients lie in memory; kReal: as they are computed

// (B, S, NH, D) with the last axis contiguous, or (B, S, NH); strides count elements.
struct View {
  void* data = nullptr;
  int64_t batch = 0, step = 0, head = 0;
};

// What forward and backward have in common.
template <typename Real>
struct MlstmInputs {
  int64_t B = 0, S = 0, NH = 0, DHQK = 0, DHHV = 0;
  int64_t L = 0;                        // steps of a chunk
  int64_t N = 0;                        // sequences: B, or those between the borders
  const int32_t* cu_seqlens = nullptr;  // (N + 1) borders of sequences on S, with B = 1; or null
  Storage storage = Storage::kReal;
  Real scale = 1, eps = 0;
  bool sigmoid_igate = false, normalize = true;
  View q, k, v, i, f;                                      // gates are Real
  const Real *C0 = nullptr, *n0 = nullptr, *m0 = nullptr;  // (N, NH, DHQK, DHHV), (N, NH, DHQK), (N, NH); or null: fresh
};

// Results are contiguous.
template <typename Real>
struct MlstmForward : MlstmInputs<Real> {
  View h;                                         // (B, S, NH, DHHV)
  Real *C = nullptr, *n = nullptr, *m = nullptr;  // the state after the last step, or null
  Real* dot = nullptr;                            // (B, S, NH) s q.n
};

template <typename Real>
struct MlstmBackward : MlstmInputs<Real> {
  bool exact = true;  // false: the normaliser is a constant
  View h, dh;
  const Real* dot = nullptr;                            // of the forward
  const Real *dC = nullptr, *dn = nullptr;              // of the state after the last step, or null
  View dq, dk, dv, di, df;                              // gates' are Real
  Real *dC0 = nullptr, *dn0 = nullptr, *dm0 = nullptr;  // written when a state is given
};

template <typename Real>
void mlstm_forward(const MlstmForward<Real>& p, int threads);
template <typename Real>
void mlstm_backward(const MlstmBackward<Real>& p, int threads);

// One head of one sequence (task = sequence NH + head), compiled once per instruction set.
#define XLSTM_MLSTM_TASKS                                             \
  template <typename Real>                                            \
  void mlstm_forward_task(const MlstmForward<Real>& p, int64_t task); \
  template <typename Real>                                            \
  void mlstm_backward_task(const MlstmBackward<Real>& p, int64_t task);
namespace baseline {
XLSTM_MLSTM_TASKS
}
namespace avx2 {
XLSTM_MLSTM_TASKS
}
namespace avx512 {
XLSTM_MLSTM_TASKS
}
#undef XLSTM_MLSTM_TASKS

}  // namespace xlstm::cpu
