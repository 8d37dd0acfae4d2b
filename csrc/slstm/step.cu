// step.cu - one token of the sLSTM, forward, for decoding: S1-S3 of README.md, R read from memory once, whatever B is.
//
// Blocks: 8 units of one head, one warp each.  A warp keeps the four gates' rows of R of its unit in registers (all of them
// requested at once: the latency of one access, not of DH), then takes the rows of the batch kRows at a time: h of these rows in
// shared memory, 16 partial sums per lane, which 16 shuffles turn into one finished sum per lane pair. Shared memory: h of kRows
// rows, 18 KiB.  Precision: h rounded to Element where it enters R, as in the sequence kernels; sums, gates and states float32.
#include <stdexcept>
#include <string>

#include "common/dispatch.h"
#include "device/convert.cuh"
#include "device/launch.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"
#include "slstm/cell.cuh"
#include "slstm/kernels.h"

namespace xlstm::slstm {
namespace {

constexpr int kWarps = 8, kRows = 4, kMaxHeadDim = 1024, kSums = 4 * kRows;

// A lane reads eight columns of h as two float4. The first ones of all lanes are neighbours, and so are the second ones, kHalf
// behind them: reads and writes meet no bank twice.
constexpr int kHalf = 128 + 16;

struct StepShared {
  float h[kRows][kMaxHeadDim / 128 * kHalf];
};

template <class Element>
XLSTM_DEVICE int place_of(int column) {
  if (sizeof(Element) == 4) return column;
  return column / 256 * 2 * kHalf + column / 4 % 2 * kHalf + column / 8 % 32 * 4 + column % 4;
}

// 16 bytes of R, times the same columns of h.
template <class Element>
XLSTM_DEVICE float dot(const uint4& r, const float* h) {
  const float4 a = device::load_word<float4>(h);
  if constexpr (sizeof(Element) == 4) {
    return __uint_as_float(r.x) * a.x + __uint_as_float(r.y) * a.y + __uint_as_float(r.z) * a.z + __uint_as_float(r.w) * a.w;
  } else {
    const float4 b = device::load_word<float4>(h + kHalf);
    return device::low_half<Element>(r.x) * a.x + device::high_half<Element>(r.x) * a.y + device::low_half<Element>(r.y) * a.z +
           device::high_half<Element>(r.y) * a.w + device::low_half<Element>(r.z) * b.x + device::high_half<Element>(r.z) * b.y +
           device::low_half<Element>(r.w) * b.z + device::high_half<Element>(r.w) * b.w;
  }
}

// Sums each of 16 values over the warp; lane l gets number l / 2.
XLSTM_DEVICE float sum_of_lane(float (&v)[kSums], int lane) {
#pragma unroll
  for (int level = 0; level < 4; ++level) {
    const int half = kSums / 2 >> level, offset = 16 >> level;
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) {
      if (i >= half) continue;
      const float keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(device::kAllLanes, give, offset);
    }
  }
  return v[0] + __shfl_xor_sync(device::kAllLanes, v[0], 1);
}

// VECTORS: 16-byte accesses that a lane needs for one row of R.
template <class Element, int VECTORS>
__global__ void __launch_bounds__(32 * kWarps) step_kernel(const KernelForward p) {
  constexpr int VECTOR = 16 / int(sizeof(Element));
  XLSTM_SHARED(smem, StepShared);
  const int lane = int(threadIdx.x) % 32, warp = int(device::warp_id()), NH = int(p.shape.NH), DH = int(p.shape.DH);
  const int head = int(blockIdx.x) % NH,
            unit = int(blockIdx.x) / NH * kWarps + warp;  // DH is a multiple of 8: every unit is real

  uint4 R[4][VECTORS];
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const int column = (v * 32 + lane) * VECTOR;
      const Element* row = static_cast<const Element*>(p.R) + ((int64_t(gate) * NH + head) * DH + unit) * DH;
      R[gate][v] = column < DH ? device::load_word<uint4>(row + column) : uint4{0, 0, 0, 0};
    }
  }

  for (int64_t first = 0; first < p.shape.B; first += kRows) {
    __syncthreads();  // everyone has left h of the rows before
    for (int i = int(threadIdx.x); i < kRows * DH; i += 32 * kWarps) {
      const int64_t row = first + i / DH;
      const float h = p.h0 && row < p.shape.B ? p.h0[(row * NH + head) * DH + i % DH] : 0.0f;
      smem.h[i / DH][place_of<Element>(i % DH)] = device::to_float(device::from_float<Element>(h));
    }
    __syncthreads();
    float sums[kSums] = {};  // of row i / 4, gate i % 4
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const int column = (v * 32 + lane) * VECTOR;
      if (column >= DH) continue;
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] += dot<Element>(R[i % 4][v], &smem.h[i / 4][place_of<Element>(column)]);
    }
    const float sum = sum_of_lane(sums, lane);
    float raw[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) raw[gate] = __shfl_sync(device::kAllLanes, sum, lane / 8 * 8 + 2 * gate);
    const int64_t row = first + lane / 8, at = (row * NH + head) * DH + unit;
    if (lane % 8 != 0 || row >= p.shape.B) continue;
    const Element* x = static_cast<const Element*>(p.x.data) + row * p.x.batch + head * p.x.head + unit;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      raw[gate] += (p.b ? p.b[(gate * NH + head) * DH + unit] : 0.0f) + device::to_float(x[gate * p.x_gate_stride]);
    CellState<float> state = p.h0 ? cell_state(p.c0[at], p.n0[at], p.m0[at]) : cell_state(0.0f, 0.0f, 0.0f);
    CellSaved<float> saved;
    const float h = with_forget_gate(p.shape.forget_gate, [&](auto gate) {
      return cell_forward<decltype(gate)::value>(raw[0], raw[1], raw[2], raw[3], state, saved);
    });
    static_cast<Element*>(p.h)[at] = device::from_float<Element>(h);
    p.h_last[at] = h, p.c_last[at] = state.c, p.n_last[at] = state.n, p.m_last[at] = returned_m(state);
  }
}

template <class Element>
void launch_step(const KernelForward& p, Stream stream) {
  static const std::string name = std::string("slstm_step<") + kElementName<Element> + ">";
  constexpr int VECTOR = 16 / int(sizeof(Element));
  device::LaunchConfig config;
  config.grid = dim3(unsigned(p.shape.NH * (p.shape.DH / kWarps)));
  config.block = dim3(32 * kWarps);
  config.stream = stream.handle;
  config.device = stream.device;
  const int64_t vectors = (p.shape.DH + 32 * VECTOR - 1) / (32 * VECTOR);
  if (vectors <= 1) return device::launch(config, name.c_str(), step_kernel<Element, 1>, p);
  if (vectors <= 2) return device::launch(config, name.c_str(), step_kernel<Element, 2>, p);
  if (vectors <= 4) return device::launch(config, name.c_str(), step_kernel<Element, 4>, p);
  if constexpr (sizeof(Element) == 4) device::launch(config, name.c_str(), step_kernel<Element, 8>, p);
}

}  // namespace

void step(const KernelForward& p, Stream stream) {
  if (p.shape.DH < 8 || p.shape.DH % 8 || p.shape.DH > kMaxHeadDim)
    throw std::invalid_argument("slstm_step: DH: got " + std::to_string(p.shape.DH) + ", expected a multiple of 8 up to " +
                                std::to_string(kMaxHeadDim));
  with_element(p.element, [&](auto type) { launch_step<typename decltype(type)::type>(p, stream); });
}

}  // namespace xlstm::slstm
