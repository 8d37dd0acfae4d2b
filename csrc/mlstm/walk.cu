// walk.cu - which walk runs: by use, element type and chunk length. No kernel here.
#include <stdexcept>
#include <string>

#include "mlstm/any_kernel.h"
#include "mlstm/walk_float32.cuh"
#include "mlstm/walk_launch.cuh"
#include "mlstm/walks.h"

namespace xlstm::mlstm {
namespace {

void check_head_dim(const char* name, int dim) {
  if (dim < 8 || dim > 512 || dim % 8)
    throw std::invalid_argument(std::string("mlstm: ") + name + ": got " + std::to_string(dim) +
                                ", expected a multiple of 8 from 8 to 512");
}

}  // namespace

int chunk_length(ElementType element, int DHQK, int DHHV) {
  check_head_dim("DHQK", DHQK);
  check_head_dim("DHHV", DHHV);
  if (element == ElementType::Float32) return Float32Tile::L;
  return DHQK <= 256 && DHHV <= 256 ? 64 : 32;
}

int block_columns(WalkUse use, ElementType element, int L, int c, int o) {
  if (element == ElementType::Float32) return Float32Tile::BO;
  const int shared_memory = device::shared_memory_limit_of_code(any_kernel());
  const auto columns = [](auto tile) { return int(decltype(tile)::BO); };
  return use == WalkUse::H ? with_tile<WalkUse::H>(L, c, o, shared_memory, columns)
                           : with_tile<WalkUse::DQ>(L, c, o, shared_memory, columns);  // the others have the tiles of DQ
}

void walk(const WalkParams& params, Stream stream) {
  const int L = chunk_length(params.element, params.c, params.o);
  if (params.element == ElementType::Float32) return walk_float32(params, stream);
  switch (params.use) {
    case WalkUse::H:
      return walk_h(params, L, stream);
    case WalkUse::DQ:
      return walk_dq(params, L, stream);
    case WalkUse::DK:
      return walk_dk(params, L, stream);
    case WalkUse::DV:
      return walk_dv(params, L, stream);
  }
}

}  // namespace xlstm::mlstm
