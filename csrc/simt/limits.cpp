#include "simt/limits.h"

#include <algorithm>

#include "simt/kernel_api.h"
#include "simt/state.h"

namespace xlstm::simt {
namespace {
// CUDA programming guide, "Technical Specifications per Compute Capability"; multiprocessors of A100, RTX 3090, Jetson AGX Orin,
// RTX 4090, H100 SXM
constexpr Architecture kArchitectures[] = {
    {80, 80, 163 << 10, 164 << 10, 2048, 32, 108}, {86, 86, 99 << 10, 100 << 10, 1536, 16, 82},
    {87, 86, 163 << 10, 164 << 10, 1536, 16, 16},  {89, 89, 99 << 10, 100 << 10, 1536, 24, 128},
    {90, 90, 227 << 10, 228 << 10, 2048, 32, 132},
};
constexpr size_t kSystemSharedPerBlock = 1024;

uint64_t blocks_per_multiprocessor(const LaunchConfig& config,
                                   const Architecture& on) {  // as far as shared memory and threads go
  const uint64_t threads = uint64_t(config.block.x) * config.block.y * config.block.z;
  if (config.shared_bytes > on.shared_per_block) return 0;
  return std::min({on.shared_per_multiprocessor / (config.shared_bytes + kSystemSharedPerBlock),
                   uint64_t(on.threads_per_multiprocessor) / threads, uint64_t(on.blocks_per_multiprocessor)});
}
}  // namespace

const Architecture& architecture(int number) {
  for (const Architecture& a : kArchitectures)
    if (a.number == number) return a;
  throw Error("simt: architecture: got " + std::to_string(number) + ", expected 80, 86, 87, 89 or 90");
}

int shared_memory_limit() { return int(architecture(options().architecture).shared_per_block); }

void check_launch(const LaunchConfig& config, const char* kernel, const Architecture& on) {
  const std::string name = "sm_" + std::to_string(on.number);
  const auto refuse = [&](const std::string& why) { throw Error(std::string("simt: launch of ") + kernel + ": " + why); };
  const dim3 &grid = config.grid, &block = config.block, &cluster = config.cluster;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  const unsigned cluster_blocks = cluster.x * cluster.y * cluster.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    refuse("a block of " + std::to_string(threads) + " threads; the limit is 1024");
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    refuse("grid " + to_string(uint3{grid.x, grid.y, grid.z}) + " is empty or beyond (2147483647,65535,65535)");
  if (config.shared_bytes > on.shared_per_block)
    refuse(std::to_string(config.shared_bytes) + " bytes of dynamic shared memory; the limit of " + name + " is " +
           std::to_string(on.shared_per_block));
  if (cluster_blocks != 1) {
    if (on.number < 90) refuse("a cluster launch; " + name + " has no clusters");
    const int largest = options().largest_cluster;
    if (cluster_blocks == 0 || int(cluster_blocks) > largest)
      refuse("a cluster of " + std::to_string(cluster_blocks) + " blocks; the limit is " + std::to_string(largest));
    if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) refuse("the grid is not a multiple of the cluster");
  }
  if (config.cooperative) {
    if (cluster_blocks != 1) refuse("cooperative and cluster launches do not combine");
    const uint64_t resident = blocks_per_multiprocessor(config, on) * on.multiprocessors;
    if (blocks > resident)
      refuse("a cooperative grid of " + std::to_string(blocks) + " blocks; " + name + " holds " + std::to_string(resident) +
             " of them at once");
  }
}

int resident_blocks_of(const LaunchConfig& config) {
  return int(blocks_per_multiprocessor(config, architecture(options().architecture)));
}

int resident_clusters_of(const LaunchConfig& config) {
  const Architecture& on = architecture(options().architecture);
  const int blocks = int(config.cluster.x * config.cluster.y * config.cluster.z);
  if (on.number < 90 || blocks > options().largest_cluster) return 0;
  return int(blocks_per_multiprocessor(config, on)) * on.multiprocessors / blocks;
}

void require_architecture(int number, const char* instruction, const Site& site) {
  if (machine.architecture->number < number)
    fail(std::string(instruction) + " at " + to_string(site) + " needs sm_" + std::to_string(number) + "; the launch is for sm_" +
         std::to_string(machine.architecture->number));
}

}  // namespace xlstm::simt
