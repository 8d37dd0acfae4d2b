// blocks.cuh - the launch of a row of blocks on a stream, as most kernels of the mLSTM have it.
#pragma once
#include <stdexcept>
#include <string>

#include "common/view.h"
#include "device/launch.cuh"

namespace xlstm::mlstm {

// `sizes`: what the number of blocks grows with, for the error.
inline device::LaunchConfig config_of(Stream stream, int64_t blocks, int threads, const char* sizes) {
  if (blocks > 0x7fffffff)
    throw std::invalid_argument(std::string("mlstm: ") + sizes + ": got " + std::to_string(blocks) +
                                " blocks, expected at most 2147483647: more than one launch holds");
  device::LaunchConfig config;
  config.grid = dim3(unsigned(blocks));
  config.block = dim3(unsigned(threads));
  config.stream = stream.handle;
  config.device = stream.device;
  return config;
}

}  // namespace xlstm::mlstm
