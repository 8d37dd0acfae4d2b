// gates.cu - the gate scan: M4-M6 of README.md for every chunk, and the records the walks read (records.h). No product of q and
// k.
//
//   b_t = sum_{r<=t} lf_r,  G = b_L                                                     (M4)
//   m_k = max(G + m_{k-1}, max_j (G - b_j + li_j)), rounded to float32                  (M5)
//   m_t = b_t + max(m_{k-1}, max_{j<=t} (li_j - b_j))                                   (M6)
//
// Three kernels, because only m_k goes from chunk to chunk: totals (G and the maximum of every chunk, in parallel), borders (M5,
// one warp per sequence and head, three operations per chunk), records (everything else, in parallel). Sigmoid input gate: m = 0,
// only an incoming m0 scales the incoming state. A segment that starts inside the chunk (f = -inf) hides what lies before it: u =
// 0 after it, w = 0 before the last one, g = 0. Blocks of totals and records: one chunk and up to 16 heads, a warp per head at a
// time. Shared memory: the gates, 8.3 KiB at L = 64. Precision: sums and exponents in float64 (O(S) work), records in float32,
// logarithms as pairs of float32.
#include "common/dispatch.h"
#include "device/math.cuh"
#include "device/vector.cuh"
#include "mlstm/blocks.cuh"
#include "mlstm/gates/records.h"
#include "mlstm/gates/scan.cuh"
#include "mlstm/gates/tile.cuh"
#include "mlstm/normaliser.cuh"

namespace xlstm::mlstm {
namespace {

template <int L>
struct GateShared {
  GateTile<L> i, f;
};

// Both gates of a chunk, and what every warp does with each of its heads: visit(head, scan).
template <int L, class Visit>
XLSTM_DEVICE void for_each_head(const GateScanParams& p, const Chunk& chunk, const GateBlock& block, Visit&& visit) {
  XLSTM_SHARED(smem, GateShared<L>);
  smem.i.load(p.i, p.gate_element, chunk, block.first_head, block.heads, -INFINITY);
  smem.f.load(p.f, p.gate_element, chunk, block.first_head, block.heads, INFINITY);
  __syncthreads();
  constexpr int kPerLane = ChunkScan<L>::kPerLane;
  for (int head = int(device::warp_id()); head < block.heads; head += kGateWarps) {
    float i[kPerLane], f[kPerLane];
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) {
      const int t = int(device::lane_id()) * kPerLane + e;
      i[e] = t < L ? smem.i.value[head][t] : -INFINITY;
      f[e] = t < L ? smem.f.value[head][t] : INFINITY;
    }
    visit(block.first_head + head, scan_chunk<L>(i, f, p.input_gate));
  }
}

template <int L>
__global__ void __launch_bounds__(kGateThreads) totals_kernel(GateScanParams p, int64_t slots) {
  const GateBlock block = gate_block(p.sequences.NH);
  const Chunk chunk = chunk_of_slot(p.sequences, block.slot, L);
  if (!chunk.real) return;
  for_each_head<L>(p, chunk, block, [&](int head, const ChunkScan<L>& scan) {
    double* totals = p.totals + (head * slots + block.slot) * 2;
    if (device::lane_id() == 0) {
      totals[0] = scan.last_start < 0 ? scan.total : -INFINITY;  // G, when m_{k-1} reaches the chunk's end
      totals[1] = scan.total + scan.last_highest;
    }
  });
}

__global__ void __launch_bounds__(32) borders_kernel(GateScanParams p, int64_t slots) {
  const int64_t NH = p.sequences.NH, n = blockIdx.x / NH, head = blockIdx.x % NH;
  const ChunkedSpan span = span_of(p.sequences, n, p.L);
  const int64_t chunks = (span.length + p.L - 1) / p.L, first = head * slots + span.first_slot;
  const int lane = int(device::lane_id());
  float m = p.m0 ? p.m0[blockIdx.x] : 0.0f;
  if (p.input_gate == InputGate::Sigmoid) {
    for (int64_t k = lane; k < chunks; k += 32) p.m_before[first + k] = k == 0 ? m : 0.0f;
    if (lane == 0) p.m_last[blockIdx.x] = chunks ? 0.0f : m;
    return;
  }
  for (int64_t k = 0; k < chunks; k += 32) {
    const bool real = k + lane < chunks;
    const double G = real ? p.totals[(first + k + lane) * 2] : 0.0,
                 highest = real ? p.totals[(first + k + lane) * 2 + 1] : -INFINITY;
    float before = 0.0f;
    for (int j = 0; j < 32; ++j) {
      if (j == lane) before = m;
      const double m_k =
          max_or_nan(__shfl_sync(device::kAllLanes, G, j) + m, __shfl_sync(device::kAllLanes, highest, j));  // (M5)
      m = m_k == -INFINITY ? 0.0f : float(m_k);
    }
    if (real) p.m_before[first + k + lane] = before;
  }
  if (lane == 0) p.m_last[blockIdx.x] = m;
}

struct Pair {
  float high, low;
};
XLSTM_DEVICE Pair log2_pair(double log) {
  const double x = log * device::Constants<double>::log2e;
  const float high = float(x);
  return {high, fabsf(high) == INFINITY ? 0.0f : float(x - high)};
}

struct RowFactors {
  float r, delta;
};
// r_t of M3, and the gradient of the normaliser as delta_t.
XLSTM_DEVICE RowFactors normaliser_gradient(const GateScanParams& p, float m, int64_t at) {
  if (!p.normalize) return {p.scale, 0.0f};
  const float dot = p.dot[at];
  const Normaliser normaliser = normaliser_of(dot, m, p.eps);
  return {p.scale * normaliser.factor, !p.along || !normaliser.active ? 0.0f : dot > 0.0f ? -p.along[at] : p.along[at]};
}

template <int L>
__global__ void __launch_bounds__(kGateThreads) records_kernel(GateScanParams p, int64_t slots) {
  using R = Record<L>;
  const GateBlock block = gate_block(p.sequences.NH);
  const Chunk chunk = chunk_of_slot(p.sequences, block.slot, L);
  if (!chunk.real) return;
  const int64_t chunks = (chunk.span.length + L - 1) / L;
  const int lane = int(device::lane_id());
  for_each_head<L>(p, chunk, block, [&](int head, const ChunkScan<L>& scan) {
    const int64_t slot = head * slots + block.slot;
    float* record = p.records + slot * R::kFloats;
    const bool sigmoid = p.input_gate == InputGate::Sigmoid, last = chunk.index + 1 == chunks;
    const double m_before = p.m_before[slot];
    const double m_after = sigmoid ? 0.0 : last ? p.m_last[chunk.sequence * p.sequences.NH + head] : p.m_before[slot + 1];
    constexpr int kPerLane = ChunkScan<L>::kPerLane;
    float fields[9][kPerLane];
#pragma unroll
    for (int e = 0; e < kPerLane; ++e) {
      const int t = lane * kPerLane + e;
      const bool fresh = scan.start[e] >= 0;  // the chunk's initial state does not reach t
      double rise = -scan.b[e];               // m_t - b_t
      if (!sigmoid) {
        rise = fresh ? scan.highest[e] : max_or_nan(m_before, scan.highest[e]);  // (M6)
        if (rise == -INFINITY) rise = -scan.b[e];
      }
      const float m = float(scan.b[e] + rise);
      const int64_t step = chunk.index * L + t;
      const bool real = step < chunk.span.length;
      RowFactors row = {p.scale, m};
      if (p.dot && real)
        row = normaliser_gradient(p, m, (chunk.span.batch * p.sequences.NH + head) * p.sequences.S + chunk.span.first + step);
      const Pair row_log = log2_pair(real ? -rise : -INFINITY), column_log = log2_pair(scan.column[e]);
      fields[R::kRowHigh / L][e] = row_log.high;
      fields[R::kRowLow / L][e] = row_log.low;
      fields[R::kColumnHigh / L][e] = column_log.high;
      fields[R::kColumnLow / L][e] = column_log.low;
      fields[R::kR / L][e] = real ? row.r : 0.0f;
      fields[R::kU / L][e] = real && !fresh ? row.r * expf(float(m_before - rise)) : 0.0f;
      fields[R::kW / L][e] = scan.start[e] == scan.last_start ? expf(float(scan.total + scan.column[e] - m_after)) : 0.0f;
      fields[R::kDelta / L][e] = real ? row.delta : 0.0f;
      fields[R::kStart / L][e] = float(scan.start[e]);
    }
    if (lane * kPerLane < L) {
#pragma unroll
      for (int field = 0; field < 9; ++field) device::store_vector(&record[field * L + lane * kPerLane], fields[field]);
    }
    if (lane < 4) record[R::kG + lane] = lane == 0 && scan.last_start < 0 ? expf(float(scan.total + m_before - m_after)) : 0.0f;
  });
}

template <int L>
void launch_scan(const GateScanParams& p, Stream stream) {
  const int64_t slots = chunk_slots(p.sequences, L);
  const auto config = config_of(stream, gate_blocks(p.sequences, L), kGateThreads, "B * S * NH");
  const auto borders = config_of(stream, p.sequences.N * p.sequences.NH, 32, "B * NH");
  if (slots && p.input_gate == InputGate::Exponential) device::launch(config, "mlstm_gate_totals", totals_kernel<L>, p, slots);
  device::launch(borders, "mlstm_gate_borders", borders_kernel, p, slots);
  if (slots) device::launch(config, "mlstm_gate_records", records_kernel<L>, p, slots);
}

}  // namespace

int64_t chunk_slots(const Sequences& s, int L) { return s.cu_seqlens ? s.S / L + s.N : s.N * ((s.S + L - 1) / L); }

void gate_scan(const GateScanParams& params, Stream stream) {
  if (params.sequences.N * params.sequences.NH == 0) return;
  require_element(params.gate_element);
  with_chunk_length("gate scan", params.L, [&](auto L) { launch_scan<decltype(L)::value>(params, stream); });
}

}  // namespace xlstm::mlstm
