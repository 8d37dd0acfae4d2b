// gradients.cu - di and df from the row dots of the walks (M7 of README.md).
//
//   di_j     = k_j.dk_j                                   (sigmoid input gate: times sigmoid(-i_j))
//   dlog_f_t = sum_{r>=t} (q_r.dq_r - k_r.dk_r) + <C, dC> + <n, dn> of the final state,  df_t = sigmoid(-f_t) dlog_f_t
// The sum stops at the next reset (f = -inf), whose own gate has no gradient.
//
// Two kernels: suffix_sums (one block per sequence and head, from the end, kSpan steps at a time) and gates (one chunk and up to
// 16 heads per block, which turns (B, NH, S) into (B, S, NH)). Sums in float64: it is O(S) work.
#include "common/dispatch.h"
#include "device/math.cuh"
#include "device/vector.cuh"
#include "mlstm/blocks.cuh"
#include "mlstm/gates/records.h"
#include "mlstm/gates/tile.cuh"

namespace xlstm::mlstm {
namespace {

constexpr int kSuffixThreads = 512, kSuffixWarps = kSuffixThreads / 32, kPerThread = 4, kSpan = kSuffixThreads * kPerThread;

XLSTM_DEVICE float sum_of_parts(const float* parts, int count, int64_t stride, int64_t at) {
  float sum = 0.0f;
  for (int part = 0; part < count; ++part) sum += parts[part * stride + at];
  return sum;
}

struct Suffix {  // of a run of steps: the sum from its first step to the next reset, and whether the run holds a reset
  double sum;
  bool reset;
};
XLSTM_DEVICE Suffix operator+(Suffix earlier, Suffix later) {
  return {earlier.reset ? earlier.sum : earlier.sum + later.sum, earlier.reset || later.reset};
}

template <int L>
__global__ void __launch_bounds__(kSuffixThreads) suffix_sums_kernel(GateGradientParams p, int64_t slots) {
  XLSTM_SHARED(warp_sum, double[kSuffixWarps]);  // not a Suffix, whose padding nobody initialises
  XLSTM_SHARED(warp_reset, bool[kSuffixWarps]);
  XLSTM_SHARED(span_of_threads, float4[kSuffixThreads]);  // q.dq - k.dk, then their sums: global memory is read and written in
  float* const span_x = &span_of_threads[0].x;            // whole lines
  XLSTM_SHARED(span_reset, uint8_t[kSpan]);
  const Sequences& s = p.sequences;
  const unsigned NH = unsigned(s.NH);
  const int64_t n = blockIdx.x / NH, head = blockIdx.x % NH;  // in 32 bits: a 64-bit division is a call
  const ChunkedSpan span = span_of(s, n, L);
  const int64_t line = (span.batch * s.NH + head) * s.S + span.first, stride = s.B * s.NH * s.S;
  const float* records = p.records + (head * slots + span.first_slot) * Record<L>::kFloats;
  const int lane = int(device::lane_id()), warp = int(device::warp_id());
  Suffix carry = {p.border ? double(p.border[blockIdx.x]) : 0.0, false};
  for (int64_t base = (span.length - 1) / kSpan * kSpan; base >= 0 && span.length > 0; base -= kSpan) {
    for (int x = int(threadIdx.x); x < kSpan; x += kSuffixThreads) {
      const int64_t t = base + x;
      const bool real = t < span.length;
      span_x[x] = real ? sum_of_parts(p.q_dq, p.parts, stride, line + t) - sum_of_parts(p.k_dk, p.parts, stride, line + t) : 0.0f;
      span_reset[x] = real && records[t / L * Record<L>::kFloats + Record<L>::kStart + t % L] == float(t % L);
    }
    __syncthreads();
    Suffix steps[kPerThread];  // from each step of this thread to its last
    bool reset[kPerThread];
    Suffix run = {0.0, false};
    const float4 four = device::load_word<float4>(&span_of_threads[threadIdx.x]);
    float x[kPerThread] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = kPerThread - 1; e >= 0; --e) {
      reset[e] = span_reset[threadIdx.x * kPerThread + e];
      // what is before a reset does not see it: its sum counts for itself alone
      run = Suffix{x[e], false} + run;
      steps[e] = run;
      if (reset[e]) run = {0.0, true};
    }
    Suffix after = run;  // of this lane and those above
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const Suffix above = {__shfl_down_sync(device::kAllLanes, after.sum, offset),
                            __shfl_down_sync(device::kAllLanes, int(after.reset), offset) != 0};
      if (lane + offset < 32) after = after + above;
    }
    if (lane == 0) warp_sum[warp] = after.sum, warp_reset[warp] = after.reset;
    Suffix above = {__shfl_down_sync(device::kAllLanes, after.sum, 1),
                    __shfl_down_sync(device::kAllLanes, int(after.reset), 1) != 0};
    if (lane == 31) above = {0.0, false};
    __syncthreads();
    for (int w = kSuffixWarps - 1; w >= 0; --w) {
      if (w == warp) above = above + carry;  // carry is now of all warps above this one
      carry = Suffix{warp_sum[w], warp_reset[w]} + carry;
    }
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) x[e] = reset[e] ? 0.0f : float((steps[e] + above).sum);
    device::store_word(&span_of_threads[threadIdx.x], make_float4(x[0], x[1], x[2], x[3]));
    __syncthreads();
    for (int x = int(threadIdx.x); x < kSpan && base + x < span.length; x += kSuffixThreads)
      p.dlog_f[line + base + x] = span_x[x];
    __syncthreads();  // shared memory is free again
  }
}

template <int L>
__global__ void __launch_bounds__(kGateThreads) gates_kernel(GateGradientParams p) {
  XLSTM_SHARED(dlog_f, GateTile<L>);
  XLSTM_SHARED(k_dk, GateTile<L>);
  const Sequences& s = p.sequences;
  const GateBlock block = gate_block(s.NH);
  const Chunk chunk = chunk_of_slot(s, block.slot, L);
  if (!chunk.real) return;
  const int64_t stride = s.B * s.NH * s.S, left = chunk.span.length - chunk.index * L, first = chunk.span.first + chunk.index * L;
  for (int x = int(threadIdx.x); x < block.heads * L; x += kGateThreads) {
    const int head = x / L, t = x % L;
    const int64_t at = (chunk.span.batch * s.NH + block.first_head + head) * s.S + first + t;
    dlog_f.value[head][t] = t < left ? p.dlog_f[at] : 0.0f;
    k_dk.value[head][t] = t < left ? sum_of_parts(p.k_dk, p.parts, stride, at) : 0.0f;
  }
  __syncthreads();
  for (int x = int(threadIdx.x); x < L * block.heads; x += kGateThreads) {
    const int t = x / block.heads, head = x % block.heads;
    if (t >= left) continue;
    const auto at = [&](const View<>& x) {
      return chunk.span.batch * x.batch + (first + t) * x.step + (block.first_head + head) * x.head;
    };
    const int64_t out = at({p.df, s.S * s.NH, s.NH, 1});
    const float f = load_element(p.f.data, p.gate_element, at(p.f));
    store_element(p.df, p.gate_element, out, device::sigmoid(-f) * dlog_f.value[head][t]);
    float di = k_dk.value[head][t];
    if (p.input_gate == InputGate::Sigmoid) di *= device::sigmoid(-load_element(p.i.data, p.gate_element, at(p.i)));
    store_element(p.di, p.gate_element, out, di);
  }
}

template <int L>
void launch_gradients(const GateGradientParams& p, Stream stream) {
  const auto suffixes = config_of(stream, p.sequences.N * p.sequences.NH, kSuffixThreads, "B * NH");
  const auto gates = config_of(stream, gate_blocks(p.sequences, L), kGateThreads, "B * S * NH");
  device::launch(suffixes, "mlstm_suffix_sums", suffix_sums_kernel<L>, p, chunk_slots(p.sequences, L));
  device::launch(gates, "mlstm_gate_gradients", gates_kernel<L>, p);
}

}  // namespace

void gate_gradients(const GateGradientParams& params, Stream stream) {
  if (params.sequences.N * params.sequences.NH * params.sequences.S == 0) return;
  require_element(params.gate_element);
  with_chunk_length("gate gradients", params.L, [&](auto L) { launch_gradients<decltype(L)::value>(params, stream); });
}

}  // namespace xlstm::mlstm
