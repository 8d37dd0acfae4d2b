// mlstm_gates.h - the gates of the chunkwise mLSTM on a CPU, float and double (M4-M6 of csrc/mlstm/README.md).
#pragma once
#include <cstdint>

namespace xlstm::cpu {

// A row is one head of one sequence. log_i, log_f and the double results are (chunks, rows, L), contiguous; steps after a
// sequence's end have log_i = -inf, log_f = 0. t and j are steps of one chunk.
template <typename Real>
struct MlstmGates {
  int64_t chunks = 0, rows = 0, L = 0;
  bool sigmoid_igate = false;
  const double *log_i = nullptr, *log_f = nullptr;
  const Real* m0 = nullptr;                 // (rows)
  double *beta = nullptr, *rise = nullptr;  // log_i_j - b_j;  m_t - b_t
  double* m = nullptr;                      // m_t
  Real *u = nullptr, *w = nullptr;          // (chunks, rows, L): what is left at t of the state before; what j leaves behind
  Real* g = nullptr;                        // (chunks, rows): what is left of the state before at the chunk's end
  Real* m_last = nullptr;                   // (rows)
  int32_t* segment = nullptr;               // (chunks, rows, L): resets (log_f = -inf) up to t inside the chunk
};
template <class R, typename Real>
void read(R& r, MlstmGates<Real>& p) {
  r("chunks", p.chunks)("rows", p.rows)("L", p.L)("sigmoid_igate", p.sigmoid_igate);
  r("log_i", p.log_i)("log_f", p.log_f)("m0", p.m0);
  r("beta", p.beta)("rise", p.rise)("m", p.m)("u", p.u)("w", p.w)("g", p.g);
  r("m_last", p.m_last)("segment", p.segment);
}

// Whether there is any reset.
template <typename Real>
bool mlstm_gates(const MlstmGates<Real>& p, int threads);

// W_tj = exp(beta_j - rise_t) where j <= t and no reset lies between them, else 0: (matrices, L, L) of (matrices, L).
template <typename Real>
struct MlstmWeights {
  int64_t matrices = 0, L = 0;
  const double *beta = nullptr, *rise = nullptr;
  const int32_t* segment = nullptr;
  Real* W = nullptr;
};
template <class R, typename Real>
void read(R& r, MlstmWeights<Real>& p) {
  r("matrices", p.matrices)("L", p.L)("beta", p.beta)("rise", p.rise)("segment", p.segment)("W", p.W);
}

template <typename Real>
void mlstm_weights(const MlstmWeights<Real>& p, int threads);

// One row, and one matrix, compiled once per instruction set.
#define XLSTM_MLSTM_GATES                                       \
  template <typename Real>                                      \
  bool mlstm_gates_row(const MlstmGates<Real>& p, int64_t row); \
  template <typename Real>                                      \
  void mlstm_weights_of_chunk(const MlstmWeights<Real>& p, int64_t matrix);
namespace baseline {
XLSTM_MLSTM_GATES
}
namespace avx2 {
XLSTM_MLSTM_GATES
}
namespace avx512 {
XLSTM_MLSTM_GATES
}
#undef XLSTM_MLSTM_GATES

}  // namespace xlstm::cpu
