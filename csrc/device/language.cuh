// language.cuh - the words nvcc and g++ spell differently.
#pragma once

#ifdef __CUDACC__
#define XLSTM_HOST_DEVICE __host__ __device__ __forceinline__
#define XLSTM_DEVICE __device__ __forceinline__
#else
// always_inline: a file compiled for AVX-512 must not leave behind a shared copy that another CPU would run.
#define XLSTM_HOST_DEVICE inline __attribute__((always_inline))
#define XLSTM_DEVICE inline __attribute__((always_inline))
#endif
