// matrix.cuh - ldmatrix, stmatrix and mma.sync: 8x8 matrices of 16-bit elements between shared memory and registers, and their
// products with float32 accumulators. What lies where in a register is fragment.cuh's business.
#pragma once
#include <type_traits>

#include "device/kernel.cuh"

namespace xlstm::device {

constexpr bool kTransposed = true;

// ldmatrix: lanes 8m..8m+7 pass the addresses of the rows (16 bytes, 16-byte aligned) of matrix m.
template <bool TRANSPOSED = false>
XLSTM_DEVICE void ldmatrix_x1(uint32_t (&r)[1], const void* row XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
#else
  simt::ldmatrix(r, row, 1, TRANSPOSED, site);
#endif
}
template <bool TRANSPOSED = false>
XLSTM_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
#else
  simt::ldmatrix(r, row, 2, TRANSPOSED, site);
#endif
}
template <bool TRANSPOSED = false>
XLSTM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
  simt::ldmatrix(r, row, 4, TRANSPOSED, site);
#endif
}

// stmatrix (sm_90): the way back.
template <bool TRANSPOSED = false>
XLSTM_DEVICE void stmatrix_x1(void* row, const uint32_t (&r)[1] XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_address(row)), "r"(r[0]) : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_address(row)), "r"(r[0]) : "memory");
#else
  simt::stmatrix(r, row, 1, TRANSPOSED, site);
#endif
}
template <bool TRANSPOSED = false>
XLSTM_DEVICE void stmatrix_x2(void* row, const uint32_t (&r)[2] XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1])
                 : "memory");
#else
  simt::stmatrix(r, row, 2, TRANSPOSED, site);
#endif
}
template <bool TRANSPOSED = false>
XLSTM_DEVICE void stmatrix_x4(void* row, const uint32_t (&r)[4] XLSTM_SITE) {
#ifdef __CUDACC__
  if constexpr (TRANSPOSED)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
#else
  simt::stmatrix(r, row, 4, TRANSPOSED, site);
#endif
}

// d += a b with a 16x16, b 16x8 of bfloat16 or float16, d 16x8 of float32.
template <class T>
XLSTM_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] XLSTM_SITE) {
  static_assert(std::is_same<T, __nv_bfloat16>::value || std::is_same<T, __half>::value, "16-bit elements");
#ifdef __CUDACC__
  if constexpr (std::is_same<T, __nv_bfloat16>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  constexpr auto type = std::is_same<T, __half>::value ? simt::MmaType::Float16 : simt::MmaType::BFloat16;
  simt::mma_m16n8k16(d, a, b, type, site);
#endif
}

// d += a b with a 16x8, b 8x8 of tf32 (float32 words made by to_tf32), d 16x8 of float32.
XLSTM_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  simt::mma_m16n8k8_tf32(d, a, b, site);
#endif
}

// Round to nearest, ties away from zero, to the 10 fraction bits of tf32.
XLSTM_DEVICE uint32_t to_tf32(float x) {
  uint32_t word;
#ifdef __CUDACC__
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
#else
  std::memcpy(&word, &x, 4);
  if ((word & 0x7f800000u) != 0x7f800000u) word += 0x1000u;
  word &= 0xffffe000u;
#endif
  return word;
}

}  // namespace xlstm::device
