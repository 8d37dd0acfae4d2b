// step.cu - one token of the mLSTM, forward: M1-M3 of README.md, the state read and written once.
//
//   m' = max(lf + m, i)     F = exp(lf + m - m')     I = exp(i - m')            (M1)   lf = log sigmoid(f)
//   C' = F C + I k v^T      n' = F n + I k                                      (M2)
//   h  = s q^T C' / (max(|s q^T n'|, exp(-m')) + eps)                           (M3)
//
// f = -inf makes the state fresh (C = n = 0, m = 0) before the step; the old state is then not even read.
//
// Blocks: one (sample, head) and one tile of kTileColumns columns of C. A warp row of kColumnThreads threads covers the tile with
// 16-byte accesses; kRowGroups of them walk down the rows. Every block computes n' (it needs q.n'); the first tile stores it.
// Shared memory: s q and k of the head, partial sums of h; 6.1 KiB. Precision: float32 throughout, h rounded once.
// Traffic: C read and written once; q, k, n again for every tile (DHHV / 32 times, from L2).
#include <stdexcept>
#include <string>

#include "common/dispatch.h"
#include "device/math.cuh"
#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "mlstm/blocks.cuh"
#include "mlstm/elements.cuh"
#include "mlstm/normaliser.cuh"

namespace xlstm::mlstm {
namespace {

constexpr int kThreads = 128, kVector = 4, kTileColumns = 32, kMaxHeadDim = 512;
constexpr int kColumnThreads = kTileColumns / kVector, kRowGroups = kThreads / kColumnThreads, kRowsInFlight = 4;
static_assert(kThreads % kColumnThreads == 0, "every row group covers the tile");

struct StepShared {
  float q[kMaxHeadDim], k[kMaxHeadDim];     // q already scaled
  float partial[kRowGroups][kTileColumns];  // of s q^T C'
  float warp_sums[kThreads / 32];
};

struct Gates {
  bool fresh;           // the old state does not count
  float forget, input;  // F, I of M1
  float m;              // m'
};

// M1, with the limits of -inf: F is 0 after a reset, I is 0 for i = -inf, and a fresh state without input stays fresh (m' = 0).
XLSTM_DEVICE Gates exponential_gates(float i, float f, float m) {
  Gates g;
  g.fresh = f == -INFINITY;
  const float log_forget = device::log_sigmoid(f) + m;
  const float m_new = g.fresh ? i : fmaxf(log_forget, i);
  const bool empty = m_new == -INFINITY;
  g.m = empty ? 0.0f : m_new;
  g.forget = g.fresh || empty ? 0.0f : expf(log_forget - m_new);
  g.input = i == -INFINITY ? 0.0f : expf(i - m_new);
  return g;
}

// I = sigmoid(i), F = sigmoid(f), m' = 0; a state that comes with another gauge m is brought to this one.
XLSTM_DEVICE Gates sigmoid_gates(float i, float f, float m) {
  return {f == -INFINITY, expf(device::log_sigmoid(f) + m), device::sigmoid(i), 0.0f};
}

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(StepParams p) {
  XLSTM_SHARED(smem, StepShared);
  const int tiles = (p.DHHV + kTileColumns - 1) / kTileColumns, tile = int(blockIdx.x % tiles);
  const int64_t sequence = blockIdx.x / tiles, batch = sequence / p.NH, head = sequence % p.NH;
  const auto offset = [&](const View<>& x) { return batch * x.batch + head * x.head; };
  const T* q = static_cast<const T*>(p.q.data) + offset(p.q);
  const T* k = static_cast<const T*>(p.k.data) + offset(p.k);
  const T* v = static_cast<const T*>(p.v.data) + offset(p.v);
  const float* n = p.n + sequence * p.DHQK;
  float* n_new = p.n_new + sequence * p.DHQK;

  const float i = load_element(p.i.data, p.gate_element, offset(p.i)), f = load_element(p.f.data, p.gate_element, offset(p.f));
  const float m = p.m[sequence];
  const Gates gates = p.input_gate == InputGate::Exponential ? exponential_gates(i, f, m) : sigmoid_gates(i, f, m);
  if (tile == 0 && threadIdx.x == 0) p.m_new[sequence] = gates.m;

  float qn = 0.0f;  // this thread's part of s q^T n'
  for (int row = int(threadIdx.x); row < p.DHQK; row += kThreads) {
    const float q_row = p.scale * device::to_float(q[row]), k_row = device::to_float(k[row]);
    smem.q[row] = q_row;
    smem.k[row] = k_row;
    const float n_row = (gates.fresh ? 0.0f : gates.forget * n[row]) + gates.input * k_row;
    if (tile == 0) n_new[row] = n_row;
    qn += q_row * n_row;
  }
  qn = device::block_sum(qn, smem.warp_sums);  // its barriers also publish q and k

  const int column_in_tile = int(threadIdx.x % kColumnThreads) * kVector, column = tile * kTileColumns + column_in_tile;
  const int columns = min(kVector, p.DHHV - column);  // of this thread; none or all, DHHV is a multiple of 8
  const int row_group = int(threadIdx.x) / kColumnThreads;
  float h[kVector] = {};
  if (columns > 0) {
    T v_elements[kVector];
    float input_v[kVector];
    device::load_vector(v_elements, v + column);
#pragma unroll
    for (int j = 0; j < kVector; ++j) input_v[j] = gates.input * device::to_float(v_elements[j]);
    const float* C = p.C + sequence * p.DHQK * p.DHHV + column;
    float* C_new = p.C_new + sequence * p.DHQK * p.DHHV + column;
    // p.C_new may be p.C: a row is read, by this thread alone, before it is written.
    for (int first = row_group; first < p.DHQK; first += kRowGroups * kRowsInFlight) {
      float c[kRowsInFlight][kVector] = {};
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        const int row = first + r * kRowGroups;
        if (row < p.DHQK && !gates.fresh) device::load_vector(c[r], C + int64_t(row) * p.DHHV);
      }
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        const int row = first + r * kRowGroups;
        if (row >= p.DHQK) continue;
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          c[r][j] = gates.forget * c[r][j] + smem.k[row] * input_v[j];
          h[j] += smem.q[row] * c[r][j];
        }
        device::store_vector(C_new + int64_t(row) * p.DHHV, c[r]);
      }
    }
  }
  device::store_vector(&smem.partial[row_group][column_in_tile], h);
  __syncthreads();
  const int out = tile * kTileColumns + int(threadIdx.x);
  if (threadIdx.x >= kTileColumns || out >= p.DHHV) return;
  float numerator = 0.0f;
  for (int group = 0; group < kRowGroups; ++group) numerator += smem.partial[group][threadIdx.x];
  float value = numerator;
  if (p.normalize) {
    const Denominator denominator = denominator_of(qn, gates.m, p.eps);
    value = denominator.value == 0.0f ? numerator * 0.0f : numerator * denominator.shrink / denominator.value;
  }
  static_cast<T*>(p.h)[sequence * p.DHHV + out] = device::from_float<T>(value);
}

void check_head_dim(const char* name, int dim) {
  if (dim < 8 || dim > kMaxHeadDim || dim % 8)
    throw std::invalid_argument(std::string("mlstm_step: ") + name + ": got " + std::to_string(dim) +
                                ", expected a multiple of 8 up to " + std::to_string(kMaxHeadDim));
}

}  // namespace

void step(const StepParams& params, Stream stream) {
  check_head_dim("DHQK", params.DHQK);
  check_head_dim("DHHV", params.DHHV);
  if (params.B * params.NH == 0) return;
  const int64_t tiles = (params.DHHV + kTileColumns - 1) / kTileColumns;
  const auto config = config_of(stream, params.B * params.NH * tiles, kThreads, "B * NH");
  require_element(params.gate_element);
  with_element(params.element, [&](auto type) {
    using Element = typename decltype(type)::type;
    const std::string name = std::string("mlstm_step<") + kElementName<Element> + ">";
    device::launch(config, name.c_str(), step_kernel<Element>, params);
  });
}

}  // namespace xlstm::mlstm
