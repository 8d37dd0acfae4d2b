// dots.cu - dot products in float32 that the backward needs beside the walks: dh.h of every step, and <C, dC> + <n,
// dn>.
//
// Row dots: a warp takes one step of one head, 8 elements per lane and access; a block takes 32 steps of one head, so that its
// results are one line of (B, NH, S). State dots: a block takes one sequence and head. Sums always in the same order.
#include "common/dispatch.h"
#include "device/convert.cuh"
#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "mlstm/any_kernel.h"
#include "mlstm/blocks.cuh"
#include "mlstm/params.h"

namespace xlstm::mlstm {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kSteps = 32;

template <class T>
__global__ void __launch_bounds__(kThreads) row_dots_kernel(RowDotParams p) {
  constexpr int kVector = 16 / int(sizeof(T));
  XLSTM_SHARED(sums, float[kSteps]);
  const int64_t head = blockIdx.x % p.NH, blocks = (p.S + kSteps - 1) / kSteps, rest = blockIdx.x / p.NH;
  const int64_t batch = rest / blocks, first = rest % blocks * kSteps;
  const auto row = [&](const View<>& x, int64_t t) {
    return static_cast<const T*>(x.data) + batch * x.batch + t * x.step + head * x.head;
  };
  for (int step = int(device::warp_id()); step < kSteps; step += kWarps) {
    const int64_t t = first + step;
    float sum = 0.0f;
    if (t < p.S) {
      const T *x_row = row(p.x, t), *y_row = row(p.y, t);
      for (int d = int(device::lane_id()) * kVector; d < p.D; d += 32 * kVector) {
        T x[kVector], y[kVector];
        device::load_vector(x, x_row + d, p.D - d);
        device::load_vector(y, y_row + d, p.D - d);
#pragma unroll
        for (int e = 0; e < kVector; ++e) sum += device::to_float(x[e]) * device::to_float(y[e]);
      }
    }
    sum = device::warp_sum(sum);
    if (device::lane_id() == 0) sums[step] = sum;
  }
  __syncthreads();
  const int64_t t = first + threadIdx.x;
  if (threadIdx.x < kSteps && t < p.S) p.out[(batch * p.NH + head) * p.S + t] = sums[threadIdx.x];
}

__global__ void __launch_bounds__(kThreads) state_dots_kernel(StateDotParams p) {
  XLSTM_SHARED(warp_sums, float[kWarps]);
  const int64_t row = blockIdx.x;
  float sum = 0.0f;
  const auto add = [&](const float* x, const float* y, int64_t size) {
    if (!x || !y) return;
    for (int64_t e = threadIdx.x; e < size; e += kThreads) sum += x[row * size + e] * y[row * size + e];
  };
  add(p.C, p.D, p.C_size);
  add(p.n, p.d, p.n_size);
  sum = device::block_sum(sum, warp_sums);
  if (threadIdx.x == 0) p.out[row] = sum;
}

}  // namespace

void row_dots(const RowDotParams& params, Stream stream) {
  const int64_t blocks = params.B * params.NH * ((params.S + kSteps - 1) / kSteps);
  if (blocks == 0) return;
  const auto config = config_of(stream, blocks, kThreads, "B * S * NH");
  with_element(params.element, [&](auto type) {
    device::launch(config, "mlstm_row_dots", row_dots_kernel<typename decltype(type)::type>, params);
  });
}

void state_dots(const StateDotParams& params, Stream stream) {
  if (params.rows == 0) return;
  device::launch(config_of(stream, params.rows, kThreads, "B * NH"), "mlstm_state_dots", state_dots_kernel, params);
}

const void* any_kernel() { return reinterpret_cast<const void*>(state_dots_kernel); }

}  // namespace xlstm::mlstm
