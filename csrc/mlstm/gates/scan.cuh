// scan.cuh - M4 and the running maximum of M6 over the L steps of one chunk, by one warp, in float64 (O(S) work).
// A forget gate of -inf starts a new segment: b goes on without it, the maximum starts again.
#pragma once
#include "device/math.cuh"
#include "device/reduce.cuh"
#include "mlstm/params.h"

namespace xlstm::mlstm {

template <int L>
struct ChunkScan {
  static constexpr int kPerLane = L > 32 ? L / 32 : 1;  // consecutive steps of a lane; lanes past L hold closed steps
  double b[kPerLane];                                   // sum of lf up to t
  double column[kPerLane];                              // li_t - b_t
  double highest[kPerLane];                             // maximum of li_j - b_j over the segment up to t
  int start[kPerLane];                                  // the last reset up to t, or -1
  double total, last_highest;
  int last_start;
};

XLSTM_DEVICE double max_or_nan(double a, double b) { return a != a || a > b ? a : b; }

// i, f: pre-activations of this lane's steps (i = -inf, f = +inf past the end). A NaN or i = +inf makes all that follows NaN.
template <int L>
XLSTM_DEVICE ChunkScan<L> scan_chunk(const float (&i)[ChunkScan<L>::kPerLane], const float (&f)[ChunkScan<L>::kPerLane],
                                     InputGate input_gate) {
  constexpr int kPerLane = ChunkScan<L>::kPerLane;
  const int lane = int(device::lane_id());
  ChunkScan<L> s;
  bool reset[kPerLane];
  double lane_sum = 0.0;
  int lane_start = -1;
#pragma unroll
  for (int e = 0; e < kPerLane; ++e) {
    const float log_f = device::log_sigmoid(f[e]);
    reset[e] = log_f == -INFINITY;
    lane_sum += reset[e] ? 0.0 : double(log_f);
    if (reset[e]) lane_start = lane * kPerLane + e;
    s.b[e] = lane_sum;
    s.start[e] = lane_start;
  }
  const double sums = device::warp_prefix_sum(lane_sum);
  const int starts = device::warp_prefix_max(lane_start);
  double sum_before = __shfl_up_sync(device::kAllLanes, sums, 1);
  int start_before = __shfl_up_sync(device::kAllLanes, starts, 1);
  if (lane == 0) sum_before = 0.0, start_before = -1;

  double running = -INFINITY;
#pragma unroll
  for (int e = 0; e < kPerLane; ++e) {
    s.b[e] += sum_before;
    s.start[e] = max(s.start[e], start_before);
    const float log_i = i[e] == INFINITY ? NAN : input_gate == InputGate::Sigmoid ? device::log_sigmoid(i[e]) : i[e];
    s.column[e] = double(log_i) - s.b[e];
    // a reset with a closed input gate leaves the fresh state, whose m is 0
    const double level = reset[e] && s.column[e] == -INFINITY ? -s.b[e] : s.column[e];
    running = reset[e] ? level : max_or_nan(running, level);
    s.highest[e] = running;
  }
  bool crossed = lane_start >= 0;  // the lanes up to this one that `running` covers hold a reset
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const double below = __shfl_up_sync(device::kAllLanes, running, offset);
    const bool below_crossed = __shfl_up_sync(device::kAllLanes, int(crossed), offset);
    if (lane < offset) continue;
    if (!crossed) running = max_or_nan(running, below);
    crossed = crossed || below_crossed;
  }
  double highest_before = __shfl_up_sync(device::kAllLanes, running, 1);
  if (lane == 0) highest_before = -INFINITY;
#pragma unroll
  for (int e = 0; e < kPerLane; ++e)
    if (s.start[e] < lane * kPerLane) s.highest[e] = max_or_nan(highest_before, s.highest[e]);

  s.total = __shfl_sync(device::kAllLanes, sums, 31);
  s.last_start = __shfl_sync(device::kAllLanes, starts, 31);
  s.last_highest = __shfl_sync(device::kAllLanes, running, 31);
  return s;
}

}  // namespace xlstm::mlstm
