// split/product.cuh - a block's rows of R on chip, times h (forward) or dg (backward), on tensor cores (bfloat16, float16).
//
// mma m16n8k16: A = R, B = the eight rows of the batch. K is permuted so that one 16-byte packet of eight consecutive elements of
// a row is both b registers of two mma: lane (g, t) = (lane / 4, lane % 4) holds k = 32 j + 8 t .. + 7 of row g, and mma m = 0, 1
// of step j takes the pairs k = 32 j + 8 t + 4 m + {0, 1} and + {2, 3}. So 32 packets in lane order are 512 bytes in one piece:
// no bank conflicts, no ldmatrix.
//   forward   R h, K = inputs, split over warps. Tile q of a pair holds in row g gate 2q and in row g + 8 gate 2q + 1 of unit
//             8 pair + g: a thread's sums are the four gates of one unit. They are added over the K groups in shared memory.
//   backward  R^T dg, K = 4 unit + gate of the block's own units, whole in every warp; rows = inputs, split over warps: row g is
//             input 16 tile + 2 g, row g + 8 the next one. The result is this block's part of dh of all the head's units.
// A fragments of a warp: the first HELD pieces (16 rows x 32 k, 8 registers) live in registers, the rest in shared memory.
#pragma once
#include "device/convert.cuh"
#include "device/matrix.cuh"
#include "device/vector.cuh"
#include "slstm/kernels.h"
#include "slstm/split/geometry.cuh"

namespace xlstm::slstm {

template <class Element_, int UNITS_, int WARPS_, int ROW_GROUPS, int STEPS_, int HELD>
struct TensorForward {
  using Params = KernelForward;
  using Element = Element_;
  static constexpr int UNITS = UNITS_, WARPS = WARPS_, THREADS = 32 * WARPS;
  static constexpr int STEP = 32, STEPS = STEPS_;                                      // inputs per step; steps per warp, at most
  static constexpr int K_GROUPS = WARPS / ROW_GROUPS, PAIRS = UNITS / 8 / ROW_GROUPS;  // pairs of tiles per warp
  static constexpr int MAX_DH = STEP * STEPS * K_GROUPS;
  static constexpr int PITCH =
      UNITS + 1;  // float4 per row of partial sums: 1 mod 4, so that both directions are free of conflicts
  static_assert(UNITS % (8 * ROW_GROUPS) == 0 && WARPS % ROW_GROUPS == 0, "warps share the tiles evenly");
  static constexpr int STEP_PIECES = 2 * PAIRS;

  uint32_t held[HELD][2][4];            // [piece = (step, pair, q)][m]
  uint4* stored;                        // [piece - HELD][m][lane], this warp's
  float4* partial;                      // [K group][row][PITCH] {i, f, z, o}
  float4* bias;                         // [unit]
  int k_group, row_group, lane, steps;  // steps: of this warp, at most steps_of(DH)

  static XLSTM_HOST_DEVICE int steps_of(int DH) { return ceil_divide(ceil_divide(DH, STEP), K_GROUPS); }
  static XLSTM_HOST_DEVICE int stored_packets(int DH) {  // of one warp
    return (steps_of(DH) * STEP_PIECES > HELD ? steps_of(DH) * STEP_PIECES - HELD : 0) * 2 * 32;
  }
  static XLSTM_HOST_DEVICE int shared_bytes(int DH) {
    return (WARPS * stored_packets(DH) + K_GROUPS * kSplitRows * PITCH + UNITS) * int(sizeof(uint4));
  }

  XLSTM_DEVICE TensorForward(unsigned char* shared, const KernelForward& p, const SplitPlace& place) {
    const int warp = int(device::warp_id()), DH = int(p.shape.DH);
    lane = int(device::lane_id()), k_group = warp % K_GROUPS, row_group = warp / K_GROUPS;
    steps = ceil_divide(max(0, ceil_divide(DH, STEP) - k_group), K_GROUPS);
    stored = reinterpret_cast<uint4*>(shared) + warp * stored_packets(DH) + lane;
    partial = reinterpret_cast<float4*>(shared) + WARPS * stored_packets(DH);
    bias = partial + K_GROUPS * kSplitRows * PITCH;
    load_bias<UNITS>(bias, p, place);
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
      if (i < steps) {
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const int piece = (i * PAIRS + pair) * 2 + q, in = input(i);
            const int unit = place.rank * UNITS + 8 * (row_group * PAIRS + pair) + lane / 4;
            uint4 rows[2] = {};
#pragma unroll
            for (int r = 0; r < 2; ++r)
              if (unit < DH && in < DH)
                rows[r] = device::load_word<uint4>(static_cast<const Element*>(p.R) +
                                                   ((int64_t(2 * q + r) * p.shape.NH + place.head) * DH + unit) * DH + in);
            const uint32_t a[2][4] = {{rows[0].x, rows[1].x, rows[0].y, rows[1].y}, {rows[0].z, rows[1].z, rows[0].w, rows[1].w}};
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              if (piece < HELD) {
#pragma unroll
                for (int e = 0; e < 4; ++e) held[piece < HELD ? piece : 0][m][e] = a[m][e];
              } else {
                device::store_word<uint4>(stored + ((piece - HELD) * 2 + m) * 32, uint4{a[m][0], a[m][1], a[m][2], a[m][3]});
              }
            }
          }
        }
        __syncwarp();  // keeps the compiler from requesting all of R at once, which would spill
      }
  }

  // The packet of step i that this lane multiplies: elements input(i) .. + 7 of row lane / 4.
  XLSTM_DEVICE int step_index(int i) const { return k_group + K_GROUPS * i; }
  XLSTM_DEVICE int input(int i) const { return STEP * step_index(i) + 8 * (lane % 4); }
  static XLSTM_DEVICE uint4 packet(const float* values) {
    float v[4], w[4];
    device::load_vector(v, values);
    device::load_vector(w, values + 4);
    return {device::pack<Element>(v[0], v[1]), device::pack<Element>(v[2], v[3]), device::pack<Element>(w[0], w[1]),
            device::pack<Element>(w[2], w[3])};
  }

  XLSTM_DEVICE void multiply(const uint4 (&h)[STEPS]) const {
    float sums[PAIRS][2][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
      if (i < steps) {
        const uint32_t b[2][2] = {{h[i].x, h[i].y}, {h[i].z, h[i].w}};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
            for (int q = 0; q < 2; ++q) {
              const int piece = (i * PAIRS + pair) * 2 + q;
              if (piece < HELD) {
                device::mma_m16n8k16<Element>(sums[pair][q], held[piece < HELD ? piece : 0][m], b[m]);
              } else {
                const uint4 w = device::load_word<uint4>(stored + ((piece - HELD) * 2 + m) * 32);
                const uint32_t a[4] = {w.x, w.y, w.z, w.w};
                device::mma_m16n8k16<Element>(sums[pair][q], a, b[m]);
              }
            }
          }
        }
      }
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
      for (int e = 0; e < 2; ++e)
        device::store_word<float4>(
            partial + (k_group * kSplitRows + 2 * (lane % 4) + e) * PITCH + 8 * (row_group * PAIRS + pair) + lane / 4,
            float4{sums[pair][0][e], sums[pair][0][2 + e], sums[pair][1][e], sums[pair][1][2 + e]});
    }
  }

  // R h + b of one cell, K groups added in their order.
  XLSTM_DEVICE void gates(float (&raw)[4], int row, int unit) const {
    raw[0] = raw[1] = raw[2] = raw[3] = 0.0f;
#pragma unroll
    for (int k = 0; k < K_GROUPS; ++k) {
      const float4 part = device::load_word<float4>(partial + (k * kSplitRows + row) * PITCH + unit);
      raw[0] += part.x, raw[1] += part.y, raw[2] += part.z, raw[3] += part.w;
    }
    const float4 b = device::load_word<float4>(bias + unit);  // last, as x is: a large gate must not round the sum's addends
    raw[0] += b.x, raw[1] += b.y, raw[2] += b.z, raw[3] += b.w;
  }
};

template <class Element_, int UNITS_, int WARPS_, int TILES_, int HELD>
struct TensorBackward {
  using Params = KernelBackward;
  using Element = Element_;
  static constexpr int UNITS = UNITS_, WARPS = WARPS_, THREADS = 32 * WARPS;
  static constexpr int STEPS = UNITS / 8, TILES = TILES_;  // steps of 32 k; tiles of 16 inputs per warp, at most
  static constexpr int SENT = TILES;                       // targets, 16 inputs each, of a warp
  static constexpr int MAX_DH = 16 * TILES * WARPS;
  static constexpr int PITCH = 36;  // packets of one step of dg, 4 of them unused: 8-byte stores of 16 units meet no bank twice
  static constexpr int kDgBytes = STEPS * PITCH * int(sizeof(uint4));
  static_assert(UNITS % 16 == 0, "16 inputs belong to one block");

  uint32_t held[HELD][2][4];  // [piece = (tile, step)][m]
  uint4* stored;              // [piece - HELD][m][lane], this warp's
  unsigned char* dg;          // two buffers
  int lane, warp, DH;

  static XLSTM_HOST_DEVICE int tiles_of(int DH) { return ceil_divide(ceil_divide(DH, 16), WARPS); }
  static XLSTM_HOST_DEVICE int stored_packets(int DH) {
    return (tiles_of(DH) * STEPS > HELD ? tiles_of(DH) * STEPS - HELD : 0) * 2 * 32;
  }
  static XLSTM_HOST_DEVICE int shared_bytes(int DH) { return WARPS * stored_packets(DH) * int(sizeof(uint4)) + 2 * kDgBytes; }

  XLSTM_DEVICE TensorBackward(unsigned char* shared, const KernelBackward& p, const SplitPlace& place) {
    lane = int(device::lane_id()), warp = int(device::warp_id()), DH = int(p.shape.DH);
    stored = reinterpret_cast<uint4*>(shared) + warp * stored_packets(DH) + lane;
    dg = shared + WARPS * stored_packets(DH) * sizeof(uint4);
#pragma unroll
    for (int i = 0; i < TILES; ++i)
      if (i < tiles_of(DH)) {
        const int in = 16 * target(i) + 2 * (lane / 4);
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            const int out = place.rank * UNITS + 8 * j + 2 * (lane % 4) + m;
            uint32_t pairs[4] = {};  // inputs in, in + 1 of each gate
#pragma unroll
            for (int gate = 0; gate < 4; ++gate)
              if (out < DH && in < DH)
                pairs[gate] = device::load_word<uint32_t>(static_cast<const Element*>(p.R) +
                                                          ((int64_t(gate) * p.shape.NH + place.head) * DH + out) * DH + in);
            const uint32_t a[4] = {(pairs[0] & 0xffffu) | pairs[1] << 16, pairs[0] >> 16 | (pairs[1] & 0xffff0000u),
                                   (pairs[2] & 0xffffu) | pairs[3] << 16, pairs[2] >> 16 | (pairs[3] & 0xffff0000u)};
            const int piece = i * STEPS + j;
            if (piece < HELD) {
#pragma unroll
              for (int e = 0; e < 4; ++e) held[piece < HELD ? piece : 0][m][e] = a[e];
            } else {
              device::store_word<uint4>(stored + ((piece - HELD) * 2 + m) * 32, uint4{a[0], a[1], a[2], a[3]});
            }
          }
        }
        __syncwarp();  // as above
      }
  }

  XLSTM_DEVICE int target(int i) const { return warp + WARPS * i; }

  // dg of one cell, rounded, into buffer `which`; returns the rounded pairs (i, f), (z, o).
  XLSTM_DEVICE uint2 put(int which, int row, int unit, const float (&values)[4]) const {
    const uint2 word{device::pack<Element>(values[0], values[1]), device::pack<Element>(values[2], values[3])};
    device::store_word<uint2>(
        dg + which * kDgBytes + (unit / 8 * PITCH + row * 4 + unit % 8 / 2) * int(sizeof(uint4)) + unit % 2 * 8, word);
    return word;
  }
  static XLSTM_DEVICE void store_dx(void* dx, int64_t gate_stride, const uint2& word) {
    auto* to = static_cast<uint16_t*>(dx);
    to[0] = uint16_t(word.x), to[gate_stride] = uint16_t(word.x >> 16);
    to[2 * gate_stride] = uint16_t(word.y), to[3 * gate_stride] = uint16_t(word.y >> 16);
  }
  using Rounded = uint2;

  // send(target, chunk, float4): inputs 2 (chunk % 8), + 1 of the 16, of rows 2 (chunk / 8), + 1: {in r, in r + 1, in + 1 r, ..}
  template <class Send>
  XLSTM_DEVICE void multiply(int which, Send&& send) const {
    uint4 b[STEPS];
#pragma unroll
    for (int j = 0; j < STEPS; ++j)
      b[j] = device::load_word<uint4>(dg + which * kDgBytes + (j * PITCH + lane) * int(sizeof(uint4)));
#pragma unroll
    for (int i = 0; i < TILES; ++i)
      if (16 * target(i) < DH) {
        float sums[2][4] = {};
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            const uint32_t pair[2] = {m == 0 ? b[j].x : b[j].z, m == 0 ? b[j].y : b[j].w};
            const int piece = i * STEPS + j;
            if (piece < HELD) {
              device::mma_m16n8k16<Element>(sums[m], held[piece < HELD ? piece : 0][m], pair);
            } else {
              const uint4 w = device::load_word<uint4>(stored + ((piece - HELD) * 2 + m) * 32);
              const uint32_t a[4] = {w.x, w.y, w.z, w.w};
              device::mma_m16n8k16<Element>(sums[m], a, pair);
            }
          }
        }
        send(target(i), lane % 4 * 8 + lane / 4,
             float4{sums[0][0] + sums[1][0], sums[0][1] + sums[1][1], sums[0][2] + sums[1][2], sums[0][3] + sums[1][3]});
      }
  }
};

}  // namespace xlstm::slstm
