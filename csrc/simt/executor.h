// executor.h - the host SIMT executor as its callers see it: options, launches, errors and what was counted.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <vector_types.h>

namespace xlstm::simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Site {  // a place in a kernel's source; as a default argument, that of the caller
  const char* file;
  int line;
  constexpr Site(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

enum class Order { Fifo, Reverse, Lifo, Random };  // which thread that can run goes next
enum class Landing { Late, Early, Random };        // when an asynchronous copy lands; every choice is legal on a GPU
enum class MmaModel { Float64, Float32, Hopper };  // Float64 rounds once; Hopper truncates to 25 aligned bits (MMA-Sim)

struct Options {
  Order order = Order::Random;
  uint64_t seed = 1;
  Landing landing = Landing::Late;
  MmaModel mma = MmaModel::Float64;
  int architecture = 90;     // limits and instructions of sm_80, sm_86, sm_89 or sm_90
  bool poison = true;        // shared memory starts as NaN
  bool strict_sites = true;  // the threads of one collective must stand on one source line
  bool races = false;        // needs instrumented kernels
  bool profile = false;      // record launches; memory counts need instrumented kernels
  size_t stack_bytes = 64 << 10;
};
Options& options();

bool instrumented();  // were the kernels of this module compiled with memory-access hooks?

struct Counters {  // of one launch
  uint64_t switches, blocks, threads, warp_collectives, mma, ldmatrix, stmatrix, shuffles, block_barriers, mbarrier_phases,
      async_copies;
};

struct LineTraffic {  // accesses of one source line to one memory space
  std::string where;
  bool shared, write;
  uint64_t requests, bytes, transactions, least;  // transactions: 32-byte sectors, or shared-memory wavefronts
};

struct LaunchRecord {
  std::string kernel;
  uint3 grid, block, cluster;
  bool cooperative;
  size_t shared_bytes;  // static and dynamic, per block
  Counters counters;
  uint64_t global_bytes_read, global_bytes_written;
  std::vector<LineTraffic> lines;
};
std::vector<LaunchRecord> take_launches();  // those recorded since the last call

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_bytes = 0;
  void* stream = nullptr;  // of no meaning here
  dim3 cluster = dim3(1, 1, 1);
  bool cooperative = false;
  int device = -1;  // index of the device; -1: the current one
};
int shared_memory_limit();  // bytes that a block can ask for on the architecture in the options
using Invoke = void (*)(const void* closure);
// Runs invoke(closure) once for every thread of the grid. Throws Error; the executor is usable afterwards.
void run(const LaunchConfig& config, const char* kernel, Invoke invoke, const void* closure, size_t closure_bytes);

}  // namespace xlstm::simt
