// wgmma.cuh - asynchronous products of a warpgroup (sm_90a): bf16 operands through shared-memory descriptors or registers.
// Only the shapes that were tried exist: N = 64 with both operands in shared memory, N = 32 with a in registers.
#pragma once
#include "device/kernel.cuh"

namespace xlstm::device {

// Shared-memory matrix descriptor (PTX ISA 9.7.15.5.1.2.2). Offsets in bytes; swizzle 0, 32, 64 or 128 bytes.
XLSTM_DEVICE uint64_t matrix_descriptor(const void* p, unsigned leading_offset, unsigned stride_offset, unsigned swizzle) {
  const uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return uint64_t((shared_address(p) & 0x3ffffu) >> 4) | uint64_t((leading_offset & 0x3ffffu) >> 4) << 16 |
         uint64_t((stride_offset & 0x3ffffu) >> 4) << 32 | mode << 62;
}

XLSTM_DEVICE void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

XLSTM_DEVICE void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  simt::wgmma_commit();
#endif
}

template <int Pending>
XLSTM_DEVICE void wgmma_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#else
  simt::wgmma_wait(Pending);
#endif
}

// d (64 x 64) = a b + scale_d d, both operands in shared memory, transposed where MN-major.
template <bool TransposeA = false, bool TransposeB = false>
XLSTM_DEVICE void wgmma_m64n64k16_bf16(float (&d)[32], uint64_t a, uint64_t b, int scale_d = 1 XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, keep, 1, 1, %35, %36;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
        "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(scale_d), "n"(int(TransposeA)), "n"(int(TransposeB)));
#else
  simt::wgmma(d, 64, nullptr, a, b, TransposeA, TransposeB, scale_d, site);
#endif
}

// d (64 x 32) = a b + scale_d d, a in registers (the m16n8k16 fragment of each warp's 16 rows).
template <bool TransposeB = false>
XLSTM_DEVICE void wgmma_m64n32k16_bf16(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int scale_d = 1 XLSTM_SITE) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, keep, 1, 1, %22;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale_d), "n"(int(TransposeB)));
#else
  simt::wgmma(d, 32, a, 0, b, false, TransposeB, scale_d, site);
#endif
}

}  // namespace xlstm::device
