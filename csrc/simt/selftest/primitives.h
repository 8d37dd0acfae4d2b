// primitives.h - the test kernels: each is one block or cluster that reads 32-bit words and writes 32-bit words, by name.
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace xlstm::selftest {

std::vector<std::string> names();
// n is the kernel's own size argument. Throws std::invalid_argument for an unknown name, and what the launch throws.
void run(const std::string& name, const uint32_t* in, uint32_t* out, int n, void* stream);

struct Primitive {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*, int);
  unsigned grid, block, cluster;
  size_t shared_bytes;
  bool cooperative;
};
// Each test file adds its kernels to the table once, at program start.
struct Register {
  Register(std::initializer_list<Primitive> primitives);
};

}  // namespace xlstm::selftest
