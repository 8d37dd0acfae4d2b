// resident/product.cuh - R of one head, on chip for a whole launch, times the h or dg of eight rows.
//
// Tensor cores (bfloat16, float16): mma m16n8k16, A = R in registers, B = the eight rows from shared memory (ldmatrix), N = rows.
//   A is permuted so that a thread's sums are what its cells need.  Forward: tile (u, q) of a warp holds in row g gate 2q and in
//   row g + 8 gate 2q + 1 of unit UNITS * (8 * warp + g) + u.  Backward: row g is unit 16 * warp + 2 g, row g + 8 the next one,
//   and k = 4 * out + gate, so that a thread's dg of two units is one 16-byte store.
// FMA (float32): R in shared memory as float4 {i, f, z, o}, the thread sums four gates (forward) or over them (backward); sums in
//   float32, so a product is as exact as float32 is.
// Either way a thread owns rows 2t, 2t + 1 of the tile (t = lane % 4) and the units at g = lane / 4.
#pragma once
#include "device/fragment.cuh"
#include "device/matrix.cuh"
#include "slstm/kernels.h"
#include "slstm/words.cuh"

namespace xlstm::slstm {

// R[gate][head][out][in .. in + 1] of the padded head; zeros beyond DH.
template <class Element>
XLSTM_DEVICE uint32_t load_R_pair(const Element* R, const Shape& shape, int head, int gate, int out, int in) {
  if (out >= shape.DH || in >= shape.DH) return 0;
  return device::load_word<uint32_t>(R + ((int64_t(gate) * shape.NH + head) * shape.DH + out) * shape.DH + in);
}

XLSTM_DEVICE float4 load_R_gates(const float* R, const Shape& shape, int head, int out, int in) {
  if (out >= shape.DH || in >= shape.DH) return float4{0.0f, 0.0f, 0.0f, 0.0f};
  const int64_t gate = shape.NH * shape.DH * shape.DH;
  R += (head * shape.DH + out) * shape.DH + in;
  return float4{R[0], R[gate], R[2 * gate], R[3 * gate]};
}

// sums[u][q][2 (gate % 2) + e] += R_gate[unit + u] . h[row 2t + e], gate = 2q + gate % 2.
template <class Element, int DH, int UNITS>
struct TensorForwardProduct {
  static constexpr int K = DH / 16, PITCH = DH + 8;  // of h and x in shared memory: rows of 16 bytes mod 128, so no bank conflict
  struct Shared {};
  uint32_t A[UNITS][2][K][4];

  XLSTM_DEVICE void load(Shared&, const KernelForward& p, int head, int warp, int lane) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const device::Coordinate at = device::a_coordinate(lane, 2 * e);
            const int gate = 2 * q + at.row / 8, unit = UNITS * (8 * warp + at.row % 8) + u;
            A[u][q][k][e] = load_R_pair(static_cast<const Element*>(p.R), p.shape, head, gate, unit, 16 * k + at.column);
          }
        }
      }
    }
  }
  // h (8, PITCH).  between(i), i = 0, 1, 2, is other work of the step, put where the tensor cores leave the issue slots free.
  template <class Between>
  XLSTM_DEVICE void multiply(float (&sums)[UNITS][2][4], const Shared&, const Element* h, int, int lane,
                             Between&& between) const {
    const device::Coordinate at = device::b_ldmatrix_k32_row(lane);
    const Element* row = h + at.row * PITCH + at.column;
#pragma unroll
    for (int k = 0; k < K; k += 2) {
      uint32_t w[4];
      device::ldmatrix_x4(w, row + 16 * k);
      const uint32_t b0[2] = {w[0], w[1]}, b1[2] = {w[2], w[3]};
#pragma unroll
      for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int q = 0; q < 2; ++q) device::mma_m16n8k16<Element>(sums[u][q], A[u][q][k], b0);
      }
#pragma unroll
      for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int q = 0; q < 2; ++q) device::mma_m16n8k16<Element>(sums[u][q], A[u][q][k + 1], b1);
      }
      if (k == 0) between(0);
      if (k == (K > 2 ? 2 : 0)) between(1);
      if (k == (K > 4 ? 4 : K - 2)) between(2);
    }
  }
};

template <int DH>
struct FmaForwardProduct {
  static constexpr int PITCH = DH + 4;
  struct Shared {
    float4 R[DH][DH];  // [in][out] {i, f, z, o}
  };

  XLSTM_DEVICE void load(Shared& smem, const KernelForward& p, int head, int, int) {
    const float* R = static_cast<const float*>(p.R);
    for (int i = int(threadIdx.x); i < DH * DH; i += int(blockDim.x)) {
      const int in = i / DH, out = i % DH;  // neighbours in shared memory; L1 keeps the lines of R
      device::store_word(&smem.R[in][out], load_R_gates(R, p.shape, head, out, in));
    }
  }
  template <class Between>
  XLSTM_DEVICE void multiply(float (&sums)[1][2][4], const Shared& smem, const float* h, int warp, int lane,
                             Between&& between) const {
    const device::Coordinate at = device::c_coordinate(lane, 0);
    const float* row = h + at.column * PITCH;
    const int unit = 8 * warp + at.row;
    between(0), between(1), between(2);
#pragma unroll 4
    for (int k = 0; k < DH; k += 4) {
      const float4 a = device::load_word<float4>(row + k), b = device::load_word<float4>(row + PITCH + k);
      const float h0[4] = {a.x, a.y, a.z, a.w}, h1[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 R = device::load_word<float4>(&smem.R[k + j][unit]);
        sums[0][0][0] += R.x * h0[j], sums[0][0][1] += R.x * h1[j];
        sums[0][0][2] += R.y * h0[j], sums[0][0][3] += R.y * h1[j];
        sums[0][1][0] += R.z * h0[j], sums[0][1][1] += R.z * h1[j];
        sums[0][1][2] += R.w * h0[j], sums[0][1][3] += R.w * h1[j];
      }
    }
  }
};

// dh[e][u] = sum over gates and out of R_gate[out][unit + u] dg_gate[row 2t + e][out].
template <class Element, int DH>
struct TensorBackwardProduct {
  static constexpr int K = DH / 4, UNITS = 2, PITCH = 4 * DH + 8;
  static constexpr int CHAINS = DH < 128 ? 4 : 2;  // independent sums: one chain of K dependent products would be latency alone
  // Several warps per scheduler take turns, so other work goes between the products; one warp does it after them.
  static constexpr bool SPREAD = DH / 16 > 4;
  struct Shared {};
  uint32_t A[K][4];

  XLSTM_DEVICE void load(Shared&, const KernelBackward& p, int head, int warp, int lane) {
    const Element* R = static_cast<const Element*>(p.R);
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const device::Coordinate at = device::a_coordinate(lane, 4 * e);  // rows at.row, at.row + 8: two neighbouring units
        const int column = 16 * k + at.column, out = column / 4, gate = column % 4, unit = 16 * warp + 2 * at.row;
        const uint32_t even = load_R_pair(R, p.shape, head, gate, out, unit);
        const uint32_t odd = load_R_pair(R, p.shape, head, gate + 1, out, unit);
        A[k][2 * e] = (even & 0xffffu) | odd << 16;
        A[k][2 * e + 1] = even >> 16 | (odd & 0xffff0000u);
      }
      if (k % 8 == 7) __syncwarp();  // keeps ptxas from hoisting all loads at once, which spills at DH 128
    }
  }
  template <class Between>
  XLSTM_DEVICE void multiply(float (&dh)[2][UNITS], const Shared&, const Element* dg, int, int lane, Between&& between) const {
    const device::Coordinate at = device::b_ldmatrix_k32_row(lane);
    const Element* row = dg + at.row * PITCH + at.column;
    float sums[CHAINS][4] = {};
#pragma unroll
    for (int k = 0; k < K; k += 2) {
      uint32_t w[4];
      device::ldmatrix_x4(w, row + 16 * k);
      const uint32_t b0[2] = {w[0], w[1]}, b1[2] = {w[2], w[3]};
      device::mma_m16n8k16<Element>(sums[k % CHAINS], A[k], b0);
      device::mma_m16n8k16<Element>(sums[(k + 1) % CHAINS], A[k + 1], b1);
#pragma unroll
      for (int work = 0; work < 4; ++work)
        if (k == (SPREAD ? K / 4 * work / 2 * 2 : K - 2)) between(work);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = sums[0][i];
#pragma unroll
      for (int c = 1; c < CHAINS; ++c) sum += sums[c][i];
      dh[i % 2][i / 2] = sum;
    }
  }
};

template <int DH>
struct FmaBackwardProduct {
  static constexpr int UNITS = 1, PITCH = 4 * DH + 4;
  struct Shared {
    float4 R[DH][DH];  // [out][in] {i, f, z, o}
  };

  XLSTM_DEVICE void load(Shared& smem, const KernelBackward& p, int head, int, int) {
    const float* R = static_cast<const float*>(p.R);
    for (int i = int(threadIdx.x); i < DH * DH; i += int(blockDim.x))
      device::store_word(&smem.R[i / DH][i % DH], load_R_gates(R, p.shape, head, i / DH, i % DH));
  }
  template <class Between>
  XLSTM_DEVICE void multiply(float (&dh)[2][UNITS], const Shared& smem, const float* dg, int warp, int lane,
                             Between&& between) const {
    const device::Coordinate at = device::c_coordinate(lane, 0);
    const float* row = dg + at.column * PITCH;
    const int unit = 8 * warp + at.row;
    between(0), between(1);
    float sums[2][4] = {};
#pragma unroll 4
    for (int out = 0; out < DH; ++out) {
      const float4 R = device::load_word<float4>(&smem.R[out][unit]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float4 g = device::load_word<float4>(row + e * PITCH + 4 * out);
        sums[e][0] += R.x * g.x, sums[e][1] += R.y * g.y, sums[e][2] += R.z * g.z, sums[e][3] += R.w * g.w;
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) dh[e][0] = (sums[e][0] + sums[e][1]) + (sums[e][2] + sums[e][3]);
    between(2), between(3);
  }
};

}  // namespace xlstm::slstm
