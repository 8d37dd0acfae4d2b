// split/product_float32.cuh - the products of product.cuh in float32, by FMA: as exact as float32 is (TF32 is not).
//
//   forward   a warp has every K group-th step of 16 inputs. A lane sums rows `lane` and `lane + 32` of the block's 64
//             (row = gate UNITS + unit) for the eight rows of the batch; the packets of the step, four inputs each, go to the
//             other lanes through shared memory, read as broadcasts.
//   backward  a warp has tiles of 32 inputs, one per lane, and sums over the block's 64 (unit, gate); dg is read as broadcasts.
// A lane's elements of R: the first steps (tiles) live in registers, the rest in shared memory.
#pragma once
#include "device/vector.cuh"
#include "slstm/kernels.h"
#include "slstm/split/geometry.cuh"

namespace xlstm::slstm {

XLSTM_DEVICE float dot(const float4& a, const float4& b, float sum) {
  return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
}
XLSTM_DEVICE float4 as_floats(const uint4& w) {
  return {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)};
}

template <int STEPS_, int HELD_STEPS>
struct FmaForward {
  using Params = KernelForward;
  using Element = float;
  static constexpr int UNITS = 16, WARPS = 8, THREADS = 32 * WARPS, K_GROUPS = WARPS;
  static constexpr int STEP = 16, STEPS = STEPS_;  // inputs per step; steps per warp, at most
  static constexpr int MAX_DH = STEP * STEPS * K_GROUPS;
  static constexpr int STEP_PIECES = 8;  // packets of R per lane and step: two rows, four quarters of K
  static constexpr int HELD = HELD_STEPS * STEP_PIECES;
  static constexpr int GATE_PITCH = kSplitRows * UNITS + 16;  // two gates at once meet no bank twice

  float4 held[HELD];
  float4* stored;   // [piece - HELD][lane], this warp's
  float* partial;   // [K group][gate][GATE_PITCH = (row, unit)]
  float4* bias;     // [unit]
  float4* staging;  // [2][lane], this warp's
  int lane, warp, steps;

  static XLSTM_HOST_DEVICE int steps_of(int DH) { return ceil_divide(ceil_divide(DH, STEP), K_GROUPS); }
  static XLSTM_HOST_DEVICE int stored_packets(int DH) {  // of one warp
    return (steps_of(DH) * STEP_PIECES > HELD ? steps_of(DH) * STEP_PIECES - HELD : 0) * 32;
  }
  static XLSTM_HOST_DEVICE int shared_bytes(int DH) {
    return WARPS * (stored_packets(DH) + 2 * 32) * int(sizeof(float4)) + (K_GROUPS * GATE_PITCH + UNITS) * int(sizeof(float4));
  }

  XLSTM_DEVICE FmaForward(unsigned char* shared, const KernelForward& p, const SplitPlace& place) {
    const int DH = int(p.shape.DH);
    lane = int(device::lane_id()), warp = int(device::warp_id());
    steps = ceil_divide(max(0, ceil_divide(DH, STEP) - warp), K_GROUPS);
    auto* packets = reinterpret_cast<float4*>(shared);
    stored = packets + warp * stored_packets(DH) + lane;
    staging = packets + WARPS * stored_packets(DH) + warp * 2 * 32;
    bias = packets + WARPS * (stored_packets(DH) + 2 * 32);
    partial = reinterpret_cast<float*>(bias + UNITS);
    load_bias<UNITS>(bias, p, place);
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
      if (i < steps) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int quarter = 0; quarter < 4; ++quarter) {
            const int piece = (i * 2 + r) * 4 + quarter, gate = lane / UNITS + 2 * r;
            const int unit = place.rank * UNITS + lane % UNITS, in = STEP * step_index(i) + 4 * quarter;
            float4 values{0.0f, 0.0f, 0.0f, 0.0f};
            if (unit < DH && in < DH)
              values = device::load_word<float4>(static_cast<const float*>(p.R) +
                                                 ((int64_t(gate) * p.shape.NH + place.head) * DH + unit) * DH + in);
            if (piece < HELD)
              held[piece < HELD ? piece : 0] = values;
            else
              device::store_word<float4>(stored + (piece - HELD) * 32, values);
            if (piece % 4 == 3) __syncwarp();  // keeps the compiler from requesting all of R at once, which would spill
          }
        }
      }
  }

  XLSTM_DEVICE int step_index(int i) const { return warp + K_GROUPS * i; }
  XLSTM_DEVICE int input(int i) const { return STEP * step_index(i) + 4 * (lane % 4); }
  static XLSTM_DEVICE uint4 packet(const float* values) {
    float v[4];
    device::load_vector(v, values);
    return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
  }

  XLSTM_DEVICE void multiply(const uint4 (&h)[STEPS]) const {
    float sums[2][kSplitRows] = {};
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
      if (i < steps) {
        float4* stage = staging + i % 2 * 32;  // written again two steps later, behind the next __syncwarp
        device::store_word<float4>(stage + lane, as_floats(h[i]));
        __syncwarp();
        const auto add = [&](int quarter, const float4& first, const float4& second) {
#pragma unroll
          for (int row = 0; row < kSplitRows; ++row) {
            const float4 values = device::load_word<float4>(stage + row * 4 + quarter);
            sums[0][row] = dot(first, values, sums[0][row]);
            sums[1][row] = dot(second, values, sums[1][row]);
          }
        };
        if (i < HELD_STEPS) {
#pragma unroll
          for (int quarter = 0; quarter < 4; ++quarter)
            add(quarter, held[i < HELD_STEPS ? (i * 2) * 4 + quarter : 0], held[i < HELD_STEPS ? (i * 2 + 1) * 4 + quarter : 0]);
        } else {
          const float4* weights = stored + (i - HELD_STEPS) * STEP_PIECES * 32;
#pragma unroll 1  // unrolled, it would take more registers than there are
          for (int quarter = 0; quarter < 4; ++quarter)
            add(quarter, device::load_word<float4>(weights + quarter * 32),
                device::load_word<float4>(weights + (4 + quarter) * 32));
        }
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int row = 0; row < kSplitRows; ++row)
        partial[(warp * 4 + lane / UNITS + 2 * r) * GATE_PITCH + row * UNITS + lane % UNITS] = sums[r][row];
    }
    __syncwarp();  // the staging of the last step has been read
  }

  XLSTM_DEVICE void gates(float (&raw)[4], int row, int unit) const {
    raw[0] = raw[1] = raw[2] = raw[3] = 0.0f;
#pragma unroll
    for (int k = 0; k < K_GROUPS; ++k) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) raw[gate] += partial[(k * 4 + gate) * GATE_PITCH + row * UNITS + unit];
    }
    const float4 b = device::load_word<float4>(bias + unit);
    raw[0] += b.x, raw[1] += b.y, raw[2] += b.z, raw[3] += b.w;
  }
};

template <int TILES_, int HELD_TILES>
struct FmaBackward {
  using Params = KernelBackward;
  using Element = float;
  static constexpr int UNITS = 16, WARPS = 8, THREADS = 32 * WARPS;
  static constexpr int TILES = TILES_, SENT = 2 * TILES;  // tiles of 32 inputs per warp, at most; targets of 16 inputs
  static constexpr int MAX_DH = 32 * TILES * WARPS;
  static constexpr int HELD = HELD_TILES * UNITS;
  static constexpr int kDgBytes = kSplitRows * UNITS * int(sizeof(float4));

  float4 held[HELD];  // [piece = (tile, unit)] {i, f, z, o} of R[gate][unit][input of the lane]
  float4* stored;     // [piece - HELD][lane], this warp's
  float4* dg;         // two buffers [row][unit]
  int lane, warp, DH;

  static XLSTM_HOST_DEVICE int tiles_of(int DH) { return ceil_divide(ceil_divide(DH, 32), WARPS); }
  static XLSTM_HOST_DEVICE int stored_packets(int DH) {
    return (tiles_of(DH) * UNITS > HELD ? tiles_of(DH) * UNITS - HELD : 0) * 32;
  }
  static XLSTM_HOST_DEVICE int shared_bytes(int DH) { return WARPS * stored_packets(DH) * int(sizeof(float4)) + 2 * kDgBytes; }

  XLSTM_DEVICE FmaBackward(unsigned char* shared, const KernelBackward& p, const SplitPlace& place) {
    lane = int(device::lane_id()), warp = int(device::warp_id()), DH = int(p.shape.DH);
    stored = reinterpret_cast<float4*>(shared) + warp * stored_packets(DH) + lane;
    dg = reinterpret_cast<float4*>(shared) + WARPS * stored_packets(DH);
#pragma unroll
    for (int i = 0; i < TILES; ++i)
      if (i < tiles_of(DH)) {
        const int in = 32 * (warp + WARPS * i) + lane;
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
          const int piece = i * UNITS + unit, out = place.rank * UNITS + unit;
          float values[4] = {};
#pragma unroll
          for (int gate = 0; gate < 4; ++gate)
            if (out < DH && in < DH)
              values[gate] = static_cast<const float*>(p.R)[((int64_t(gate) * p.shape.NH + place.head) * DH + out) * DH + in];
          const float4 packet{values[0], values[1], values[2], values[3]};
          if (piece < HELD)
            held[piece < HELD ? piece : 0] = packet;
          else
            device::store_word<float4>(stored + (piece - HELD) * 32, packet);
          if (piece % 4 == 3) __syncwarp();  // as above
        }
      }
  }

  XLSTM_DEVICE int target(int i) const { return 2 * (warp + WARPS * (i / 2)) + i % 2; }

  using Rounded = float4;
  XLSTM_DEVICE float4 put(int which, int row, int unit, const float (&values)[4]) const {
    const float4 packet{values[0], values[1], values[2], values[3]};
    device::store_word<float4>(dg + which * kSplitRows * UNITS + row * UNITS + unit, packet);
    return packet;
  }
  static XLSTM_DEVICE void store_dx(void* dx, int64_t gate_stride, const float4& values) {
    auto* to = static_cast<float*>(dx);
    to[0] = values.x, to[gate_stride] = values.y, to[2 * gate_stride] = values.z, to[3 * gate_stride] = values.w;
  }

  // send(target, place, float2): input place % 16 of the 16, rows 2 (place / 16), + 1.
  template <class Send>
  XLSTM_DEVICE void multiply(int which, Send&& send) const {
    const float4* values = dg + which * kSplitRows * UNITS;
#pragma unroll
    for (int i = 0; i < TILES; ++i)
      if (32 * (warp + WARPS * i) < DH) {
        float sums[kSplitRows] = {};
        const auto add = [&](int unit, const float4& weights) {
#pragma unroll
          for (int row = 0; row < kSplitRows; ++row)
            sums[row] = dot(weights, device::load_word<float4>(values + row * UNITS + unit), sums[row]);
        };
        if (i < HELD_TILES) {
#pragma unroll
          for (int unit = 0; unit < UNITS; ++unit) add(unit, held[i < HELD_TILES ? i * UNITS + unit : 0]);
        } else {
          const float4* weights = stored + (i - HELD_TILES) * UNITS * 32;
#pragma unroll 1  // unrolled, it would take more registers than there are
          for (int unit = 0; unit < UNITS; ++unit) add(unit, device::load_word<float4>(weights + unit * 32));
        }
        const int first = target(2 * i);
        if (16 * (first + lane / 16) < DH) {
#pragma unroll
          for (int pair = 0; pair < kSplitRows / 2; ++pair)
            send(first + lane / 16, pair * 16 + lane % 16, float2{sums[2 * pair], sums[2 * pair + 1]});
        }
      }
  }
};

}  // namespace xlstm::slstm
