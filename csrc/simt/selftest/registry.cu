// registry.cu - the table of test kernels by name.
#include <stdexcept>

#include "device/launch.cuh"
#include "simt/selftest/primitives.h"

namespace xlstm::selftest {
namespace {
std::vector<Primitive>& table() {
  static std::vector<Primitive> primitives;
  return primitives;
}
}  // namespace

Register::Register(std::initializer_list<Primitive> primitives) { table().insert(table().end(), primitives); }

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const Primitive& p : table()) all.push_back(p.name);
  return all;
}

void run(const std::string& name, const uint32_t* in, uint32_t* out, int n, void* stream) {
  for (const Primitive& p : table()) {
    if (name != p.name) continue;
    device::LaunchConfig config;
    config.grid = dim3(p.grid);
    config.block = dim3(p.block);
    config.cluster = dim3(p.cluster);
    config.shared_bytes = p.shared_bytes;
    config.cooperative = p.cooperative;
    config.stream = stream;
    return device::launch(config, p.name, p.kernel, in, out, n);
  }
  throw std::invalid_argument("test kernel: got '" + name + "', which is not in this module");
}

}  // namespace xlstm::selftest
