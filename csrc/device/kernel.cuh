// kernel.cuh - the words a kernel is written in, for nvcc and for g++ (which runs the kernel on csrc/simt).
// Every header of this folder gives one function per PTX instruction, with its host twin beside it, so that both can be compared.
#pragma once
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device/language.cuh"

#ifdef __CUDACC__
#define XLSTM_SHARED(name, ...) __shared__::xlstm::device::Identity<__VA_ARGS__> name
#define XLSTM_SITE          // a last parameter: the caller's source line, for the executor's messages
#define XLSTM_ONLY_SITE     // the same where there are no others
#define XLSTM_FORWARD_SITE  // hands it on
#define XLSTM_FORWARD_ONLY_SITE
#ifdef __CUDA_ARCH__
#define XLSTM_DEVICE_ARCH __CUDA_ARCH__  // 900 is sm_90; for kernels that need its instructions
#else
#define XLSTM_DEVICE_ARCH 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define XLSTM_HAS_WGMMA 1
#else
#define XLSTM_HAS_WGMMA 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && XLSTM_DEVICE_ARCH / 100 == 10)
#define XLSTM_LATER_GPUS false  // may this code run on GPUs of another kind?
#else
#define XLSTM_LATER_GPUS true
#endif
#else
#include "simt/cuda_builtins.h"
#define XLSTM_DEVICE_ARCH 900
#define XLSTM_HAS_WGMMA 1
#define XLSTM_LATER_GPUS true  // the executor plays every GPU
// Static shared memory: XLSTM_SHARED(tile, float[32][33]). The local struct is one key per declaration and instantiation.
#define XLSTM_SHARED(name, ...)                                                                                   \
  struct XlstmSharedKey_##name {};                                                                                \
  auto& name = *static_cast<::xlstm::device::Identity<__VA_ARGS__>*>(                                             \
      ::xlstm::simt::static_shared(&::xlstm::simt::static_shared_key<XlstmSharedKey_##name>, sizeof(__VA_ARGS__), \
                                   alignof(::xlstm::device::Identity<__VA_ARGS__>), #name))
#define XLSTM_SITE , XLSTM_CALL_SITE
#define XLSTM_ONLY_SITE XLSTM_CALL_SITE
#define XLSTM_FORWARD_SITE , site
#define XLSTM_FORWARD_ONLY_SITE site
#endif

namespace xlstm::device {

namespace detail {
template <class T>
struct Identity {
  using type = T;
};
}  // namespace detail
template <class T>
using Identity = typename detail::Identity<T>::type;  // lets a macro take a type with brackets and commas

constexpr unsigned kAllLanes = 0xffffffffu;

// Shared memory of a block, in bytes, on the smallest GPUs (sm_86, sm_89, sm_120), sm_80 and the largest (sm_90, sm_100).
constexpr int kSmallSharedMemory = 99 * 1024, kMediumSharedMemory = 163 * 1024, kLargeSharedMemory = 227 * 1024;

// The most that launches ask for where kernels were compiled for compute_<architecture>; such code leaves out the kernels that
// need more. A cubin of sm_86 also runs on sm_87, which has more: the code decides, not the device.
constexpr int most_shared_memory(int architecture) {
  if (architecture == 86 || architecture == 89 || architecture / 10 == 12) return kSmallSharedMemory;
  return architecture && architecture < 90 ? kMediumSharedMemory : kLargeSharedMemory;
}
// For the code that is being compiled: the same, and what every GPU has that may run it (PTX may run on any later one).
constexpr int kMostSharedMemory = most_shared_memory(XLSTM_DEVICE_ARCH / 10);
constexpr int kLeastSharedMemory = XLSTM_LATER_GPUS ? kSmallSharedMemory : kLargeSharedMemory;

// Ends the launch with an error: for what the host has ruled out.
XLSTM_DEVICE void stop() {
#ifdef __CUDACC__
  __trap();
#else
  __builtin_trap();
#endif
}

// Dynamic shared memory, aligned to 1024 bytes; its size is LaunchConfig::shared_bytes.
template <class T>
XLSTM_DEVICE T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char xlstm_dynamic_shared[];
  return reinterpret_cast<T*>(xlstm_dynamic_shared);
#else
  return static_cast<T*>(simt::dynamic_shared());
#endif
}

// The 32-bit address that instructions on shared memory take.
XLSTM_DEVICE uint32_t shared_address(const void* p) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#else
  return simt::shared_address(p);
#endif
}

XLSTM_DEVICE unsigned lane_id() {
#ifdef __CUDACC__
  unsigned lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
#else
  return simt::lane_id();
#endif
}

// The warp's number in its block (one-dimensional blocks), known to the compiler to be the same in all lanes.
XLSTM_DEVICE unsigned warp_id(XLSTM_ONLY_SITE) {
#ifdef __CUDACC__
  return __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
#else
  (void)site;
  return threadIdx.x / 32;
#endif
}

}  // namespace xlstm::device
