// walk.cu - which walk runs: by use, element type and chunk length. No kernel here.
#include <stdexcept>
#include <string>

#include "device/launch.cuh"
#include "mlstm/any_kernel.h"
#include "mlstm/walk/choice.cuh"
#include "mlstm/walk/float32.cuh"
#include "mlstm/walk/walks.h"

namespace xlstm::mlstm {
namespace {

void check_head_dim(const char* name, int dim) {
  if (dim < 8 || dim > 512 || dim % 8)
    throw std::invalid_argument(std::string("mlstm: ") + name + ": got " + std::to_string(dim) +
                                ", expected a multiple of 8 from 8 to 512");
}

int shared_memory() { return device::shared_memory_limit_of_code(any_kernel()); }

}  // namespace

int chunk_length(ElementType element, int DHQK, int DHHV) {
  check_head_dim("DHQK", DHQK);
  check_head_dim("DHHV", DHHV);
  if (element == ElementType::Float32) return Float32Tile::L;
  return DHQK <= 256 && DHHV <= 256 ? 64 : 32;
}

int block_columns(WalkUse use, ElementType element, int L, int contracted, int outputs) {
  if (element == ElementType::Float32) return Float32Tile::OUTPUTS;
  return with_use(use, [&](auto constant) {
    return with_tile<decltype(constant)::value>(L, contracted, outputs, shared_memory(),
                                                [](auto tile) { return int(decltype(tile)::OUTPUTS); });
  });
}

void walk(const WalkParams& params, Stream stream) {
  const int L = chunk_length(params.element, params.contracted, params.outputs);
  if (params.element == ElementType::Float32) return walk_float32(params, stream);
  with_use(params.use, [&](auto constant) { walk_16_bits<decltype(constant)::value>(params, L, shared_memory(), stream); });
}

}  // namespace xlstm::mlstm
