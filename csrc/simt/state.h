// state.h - what the executor knows while a launch runs: fibers in warps in blocks, and the one machine that schedules them.
// A "domain" is the set of blocks that may wait for each other: one block, one cluster, or a whole cooperative grid.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "simt/context_switch.h"
#include "simt/kernel_api.h"
#include "simt/limits.h"

#if defined(__SANITIZE_ADDRESS__)
#define XLSTM_SIMT_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace xlstm::simt {

struct Block;
struct Warp;
struct Fiber;

// What is known to have happened (race detector): everything of warp w up to epoch warp[w], and of single threads or
// asynchronous copies, named by an id, up to an epoch of their own.
struct Clock {
  std::vector<uint32_t> warp;
  std::vector<std::pair<uint32_t, uint32_t>> single;  // id, epoch; sorted by id
  void clear() { warp.clear(), single.clear(); }
  bool empty() const { return warp.empty() && single.empty(); }
};

struct CopyOperation {  // one cp.async of one thread
  void* to;
  const void* from;
  int bytes, source_bytes;
  uint32_t group;
  Site site;
};

enum class AsyncKind { BulkLoad, TensorLoad, TensorStore, StoreValue };
struct AsyncOperation {  // TMA, bulk copy or st.async in flight
  AsyncKind kind;
  char* shared;
  Block* block;   // whose shared memory
  TensorMap map;  // a copy: __grid_constant__ parameters live on a fiber's stack
  const void* global;
  int column, row;
  unsigned bytes;
  uint64_t value[2];  // st.async
  uint64_t* barrier;
  bool remote;  // completes at cluster scope
  Fiber* issuer;
  uint32_t epoch, group;
  Site site;
};

struct WgmmaOperation;
struct PendingWgmma {
  std::shared_ptr<WgmmaOperation> operation;
  float* d;
  int n;
  uint32_t group;
};
struct Warpgroup {  // the meeting point of one wgmma
  int arrived = 0, n = 0;
  void* calls[128];
  Site site{"", 0};
};

enum class Status : uint8_t { Ready, Blocked, Exited };
struct Fiber {
  Context context;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber* next = nullptr;  // in a waiting list
  uint3 thread{};
  uint32_t linear = 0, lane = 0, index = 0;  // in the block, the warp, the domain
  Status status = Status::Ready;
  const char* waits_in = "";
  Site waits_at{"", 0};
  int64_t waits_for = 0;  // barrier id, lane mask, ...
  std::vector<CopyOperation> copies;
  uint32_t copy_group = 0, cluster_phase = 0, wgmma_group = 0, bulk_group = 0;
  std::vector<PendingWgmma> wgmmas;
  std::vector<AsyncOperation> bulk_stores;
  uint32_t epoch = 1, warp_synced = 1, fence_epoch = 0, async_epoch = 0;  // race detector
  Clock known;                                                            // beyond what the whole warp knows
  char* stack = nullptr;
  void* asan_fake_stack = nullptr;
};

struct Collective {  // warp collective that lanes are gathering for
  int kind;
  unsigned mask, arrived;
  const char* name;
  Site site;
  void* lanes[32];
};
struct Warp {
  Block* block;
  uint32_t index;  // in the domain
  unsigned live;
  int collectives_open;
  Collective collectives[8];
  Fiber* lanes[32];
  uint32_t epoch;
  Clock known;
};

struct Barrier {  // of a block (numbered), of a cluster or of a grid
  int arrived = 0, needed = 0, result = 0;
  Vote vote = Vote::None;
  Fiber *head = nullptr, *tail = nullptr;
  Site site{"", 0};
  uint32_t phase = 0;
  Clock clock, finished;  // of the phase that gathers; of the last one (cluster barrier)
};
constexpr int kWholeBlock = -1;  // Barrier::needed of __syncthreads

struct Block {
  uint3 index{};
  unsigned rank = 0;
  char *dynamic_memory = nullptr, *static_memory = nullptr;
  int threads = 0, alive = 0;
  Barrier barriers[16];
  int vote_result = 0;
  Warp* warps = nullptr;
  int warp_count = 0;
  Warpgroup warpgroups[8];
};

struct StaticVariable {
  size_t offset, bytes;
  const char* name;
};
struct MbarrierClock {
  Clock local, remote;  // arrivals of this block; arrivals at cluster scope
};
struct MbarrierWaiter {
  uint64_t* barrier;
  Fiber* fiber;
};

constexpr size_t kCanaryBytes = 1024, kStaticBytes = 48 << 10, kGuardPage = 4096;
constexpr uint32_t kSharedWindow = 0x400;  // the first KiB of a block's shared memory belongs to the system

struct Starvation {              // Order::Starve: who is held back, and for how many picks more
  const void* victim = nullptr;  // a Fiber, Warp or Block
  bool holding = false;
  uint64_t left = 0;
  std::vector<Fiber*> held;  // ready, out of the ring
  bool applies_to(const Fiber* f) const { return holding && (victim == f || victim == f->warp || victim == f->block); }
};

struct Machine {
  // the launch
  Options options;
  const Architecture* architecture = nullptr;
  LaunchConfig config;
  const char* kernel = "";
  Invoke invoke = nullptr;
  const void* closure = nullptr;
  size_t closure_bytes = 0;
  uint3 grid{}, block_shape{}, cluster{};
  std::map<const void*, StaticVariable> statics;
  size_t static_used = 0;
  Counters counters{};
  // the domain
  uint64_t domain = 0;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  unsigned fibers = 0, exited = 0;
  Barrier cluster_barrier;
  std::deque<AsyncOperation> in_flight;
  std::vector<MbarrierWaiter> mbarrier_waiters;
  std::map<uint64_t*, MbarrierClock> mbarrier_clocks;
  bool failed = false;
  std::string error;
  // the scheduler
  Fiber main;
  size_t main_stack_bytes = 0;
  std::vector<std::unique_ptr<Fiber>> pool;
  size_t pool_stack_bytes = 0;
  std::vector<Fiber*> ready;  // a ring
  uint32_t ready_head = 0, ready_tail = 0, ready_mask = 0;
  uint64_t random = 1;
  uint64_t idle_yields = 0;
  Starvation starvation;
  // shared memory of the domain's blocks
  char* slab = nullptr;
  size_t slab_capacity = 0, slab_used = 0, slab_stride = 0;
  ~Machine();
};
extern Machine machine;
extern Fiber* self;  // the running fiber; null while the scheduler or the host runs

// scheduler.cpp
[[noreturn]] void fail(const std::string& message);
void make_ready(Fiber* fiber);
void block_on(const char* what, int64_t detail, const Site& site);
void switch_out(bool dies = false);
void spin(const char* instruction, const Site& site);  // lets the others go first
uint64_t next_random();
bool lands_now();  // by Options::landing
// report.cpp
std::string to_string(const Site& site);
std::string to_string(uint3 v);
std::string hexadecimal(unsigned v);
std::string describe(const Fiber* fiber);
std::string deadlock_report();
std::string waiting_threads();  // a line for every block and place that threads wait or spin at
std::string schedule_description();
// warp_collectives.cpp
using CollectiveBody = void (*)(void* const* lanes, unsigned mask, const Collective& collective, Warp* warp);
void warp_collective(int kind, const char* name, unsigned mask, void* payload, CollectiveBody body, const Site& site);
enum CollectiveKind { kSyncwarp = 1, kShuffle, kBallot, kMma = 10, kLdmatrix = 20, kStmatrix = 30 };
// barriers.cpp
void release_barrier(Barrier& barrier);
void leave_barriers(Fiber* fiber);  // of a thread that exits
// shared_memory.cpp
void prepare_shared_memory(unsigned blocks);
void check_canaries();
bool in_shared(const Block* block, const void* p, size_t bytes);
// async_copy.cpp, bulk_copy.cpp
void finish_copy(const CopyOperation& copy);
bool land_one();  // lets one asynchronous operation in flight land; false when there is none
// memory_order.cpp
void forget_flags();  // at the start of a launch
// mbarrier.cpp
void complete_bytes(uint64_t* barrier, const AsyncOperation& operation);
// mma_arithmetic.cpp: d[m][n] += sum_k a[m][k] b[k][n], row-major, n a multiple of 8
void multiply_accumulate(const float* a, const float* b, float* d, int m, int n, int k);

}  // namespace xlstm::simt
