// limits.cuh - what the current device allows a launch: asked from CUDA, or of the card that the executor plays.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#else
#include "simt/limits.h"
#endif

namespace xlstm::device {

struct Limits {
  int architecture;      // 80 is sm_80
  int processors;        // SMs
  int shared_per_block;  // bytes, with opt-in
};

inline Limits current_limits() {
#ifdef __CUDACC__
  int device = 0, major = 0, minor = 0;
  Limits limits{};
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  ask(major, cudaDevAttrComputeCapabilityMajor);
  ask(minor, cudaDevAttrComputeCapabilityMinor);
  ask(limits.processors, cudaDevAttrMultiProcessorCount);
  ask(limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    throw std::runtime_error(std::string("xlstm_cuda: the device's limits: ") + cudaGetErrorString(error));
  }
  limits.architecture = 10 * major + minor;
  return limits;
#else
  const simt::Architecture& played = simt::architecture(simt::options().architecture);
  return {played.number, played.multiprocessors, int(played.shared_per_block)};
#endif
}

}  // namespace xlstm::device
