// memory_order.cuh - flags in global memory by which one block tells another, in the same launch, that its data is there.
// A release publishes what this thread has seen or written (after a barrier: the whole block); an acquire receives it.
#pragma once
#include <type_traits>

#include "device/kernel.cuh"

namespace xlstm::device {

XLSTM_DEVICE uint32_t load_acquire(const uint32_t* flag XLSTM_SITE) {
#ifdef __CUDACC__
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
#else
  return uint32_t(simt::load_acquire(flag, 4, site));
#endif
}

XLSTM_DEVICE void store_release(uint32_t* flag, uint32_t value XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
#else
  simt::store_release(flag, value, 4, site);
#endif
}

XLSTM_DEVICE void add_release(uint32_t* counter, uint32_t value XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
#else
  simt::add_release(counter, value, site);
#endif
}

// Without order: the value itself is never torn and comes from L2, nothing else is promised.
XLSTM_DEVICE uint32_t load_relaxed(const uint32_t* p XLSTM_SITE) {
#ifdef __CUDACC__
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#else
  return uint32_t(simt::load_relaxed(p, 4, site));
#endif
}

XLSTM_DEVICE void store_relaxed(uint32_t* p, uint32_t value XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
  simt::store_relaxed(p, value, 4, site);
#endif
}

// 8 or 16 bytes that another block of this launch stored, from L2: a copy in L1 may be old. Read them after an acquire.
template <class Word>
XLSTM_DEVICE Word load_relaxed_vector(const void* p XLSTM_SITE) {
  static_assert(std::is_same<Word, uint4>::value || std::is_same<Word, float2>::value, "16 or 8 bytes");
  Word word;
#ifdef __CUDACC__
  if constexpr (std::is_same<Word, uint4>::value)
    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
                 : "l"(p)
                 : "memory");
  else
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];" : "=f"(word.x), "=f"(word.y) : "l"(p) : "memory");
#else
  simt::vector_load(&word, p, sizeof(Word), site);
#endif
  return word;
}

}  // namespace xlstm::device
