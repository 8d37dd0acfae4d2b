// cuda_builtins.h - CUDA's built-in names (threadIdx, __syncthreads, shuffles, votes, atomics, intrinsics) for g++.
// Each waits, exchanges or computes through the executor, and remembers the source line that called it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt/kernel_api.h"

// NVIDIA's headers already give __global__, __device__, dim3, float4, __nv_bfloat16, ... to g++. These need another meaning:
#undef __shared__
#define __shared__ static_assert(false, "declare shared memory with XLSTM_SHARED or device::dynamic_shared")
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#define XLSTM_CALL_SITE const ::xlstm::simt::Site& site = {}

extern __attribute__((visibility("hidden"))) uint3 threadIdx, blockIdx, blockDim, gridDim;  // set at every switch
static constexpr int warpSize = 32;

inline void __syncthreads(XLSTM_CALL_SITE) { xlstm::simt::block_barrier(xlstm::simt::Vote::None, 0, site); }
inline int __syncthreads_count(int p, XLSTM_CALL_SITE) { return xlstm::simt::block_barrier(xlstm::simt::Vote::Count, p, site); }
inline int __syncthreads_and(int p, XLSTM_CALL_SITE) { return xlstm::simt::block_barrier(xlstm::simt::Vote::And, p, site); }
inline int __syncthreads_or(int p, XLSTM_CALL_SITE) { return xlstm::simt::block_barrier(xlstm::simt::Vote::Or, p, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, XLSTM_CALL_SITE) { xlstm::simt::warp_barrier(mask, site); }
inline void __nanosleep(unsigned) { xlstm::simt::yield(); }
inline void __threadfence_block() {}
inline void __threadfence() {}  // orders nothing that the race detector can see: use device/memory_order.cuh

namespace xlstm::simt {
template <class To, class From>
inline To bits_to(const From& from) {
  static_assert(sizeof(From) <= 8 && sizeof(To) <= 8 && std::is_trivially_copyable_v<From>, "shuffles move up to 8 bytes");
  To to{};
  std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return to;
}
template <class T>
inline T shuffle_from(unsigned mask, T value, int source, const Site& site) {
  return bits_to<T>(shuffle(mask, bits_to<uint64_t>(value), source, site));
}
}  // namespace xlstm::simt

template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, XLSTM_CALL_SITE) {
  const int lane = xlstm::simt::lane_id();
  return xlstm::simt::shuffle_from(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, XLSTM_CALL_SITE) {
  const int lane = xlstm::simt::lane_id(), source = lane ^ x;
  const bool later_segment = (source & ~(width - 1)) > (lane & ~(width - 1));
  return xlstm::simt::shuffle_from(mask, v, later_segment ? lane : source, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, XLSTM_CALL_SITE) {
  const int lane = xlstm::simt::lane_id(), source = lane - int(delta);
  return xlstm::simt::shuffle_from(mask, v, source < (lane & ~(width - 1)) ? lane : source, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, XLSTM_CALL_SITE) {
  const int lane = xlstm::simt::lane_id(), source = lane + int(delta);
  return xlstm::simt::shuffle_from(mask, v, source > (lane | (width - 1)) ? lane : source, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, XLSTM_CALL_SITE) { return xlstm::simt::ballot(mask, p, site); }
inline int __any_sync(unsigned mask, int p, XLSTM_CALL_SITE) { return xlstm::simt::ballot(mask, p, site) != 0; }
inline int __all_sync(unsigned mask, int p, XLSTM_CALL_SITE) { return xlstm::simt::ballot(mask, p, site) == mask; }

// One OS thread runs all fibers, so a plain read-modify-write is atomic.
#define XLSTM_ATOMIC(name, expression)                                                                              \
  template <class T>                                                                                                \
  inline T name(T* p, T operand, XLSTM_CALL_SITE) {                                                                 \
    T result;                                                                                                       \
    const auto update = [](void* memory, const void* value_p, void* old_p) __attribute__((no_sanitize("thread"))) { \
      const T old = *static_cast<T*>(memory), value = *static_cast<const T*>(value_p);                              \
      *static_cast<T*>(old_p) = old;                                                                                \
      *static_cast<T*>(memory) = expression;                                                                        \
    };                                                                                                              \
    xlstm::simt::atomic_update(p, sizeof(T), update, &operand, &result, site);                                      \
    return result;                                                                                                  \
  }
XLSTM_ATOMIC(atomicAdd, T(old + value))
XLSTM_ATOMIC(atomicMax, old < value ? value : old)
XLSTM_ATOMIC(atomicMin, value < old ? value : old)
XLSTM_ATOMIC(atomicExch, value)
#undef XLSTM_ATOMIC

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline float __int_as_float(int i) { return xlstm::simt::bits_to<float>(i); }
inline int __float_as_int(float f) { return xlstm::simt::bits_to<int>(f); }
inline unsigned __float_as_uint(float f) { return xlstm::simt::bits_to<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return xlstm::simt::bits_to<float>(u); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
