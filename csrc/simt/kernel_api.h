// kernel_api.h - what csrc/device calls when g++ compiles a kernel: one function per instruction, implemented in this folder.
// It is thin on purpose: the executor itself is never instrumented, so kernels can be compiled with any sanitizer.
#pragma once
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "simt/executor.h"

namespace xlstm::simt {

template <class... P, class... A>
void launch(const LaunchConfig& config, const char* name, void (*kernel)(P...), A&&... args) {
  struct Closure {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;
  } closure{kernel, {static_cast<P>(args)...}};
  const Invoke invoke = [](const void* p) {
    const auto* c = static_cast<const Closure*>(p);
    std::apply(c->kernel, c->arguments);
  };
  run(config, name, invoke, &closure, sizeof closure);
}

int resident_blocks_of(const LaunchConfig& config);
template <class... P>
int resident_blocks(const LaunchConfig& config, void (*)(P...)) {
  return resident_blocks_of(config);
}
int resident_clusters_of(const LaunchConfig& config);
template <class... P>
int resident_clusters(const LaunchConfig& config, void (*)(P...)) {
  return resident_clusters_of(config);
}

// shared memory
template <class Key>
inline char static_shared_key = 0;
void* static_shared(const void* key, size_t bytes, size_t align, const char* name);
void* dynamic_shared();
uint32_t shared_address(const void* p);
void* map_shared_rank(const void* p, unsigned rank);

// threads, barriers
unsigned lane_id();
unsigned cluster_rank();
unsigned cluster_size();
void yield();
enum class Vote { None, Count, And, Or };
int block_barrier(Vote vote, int predicate, const Site& site);
void named_barrier(int id, int threads, bool wait, const Site& site);
void cluster_arrive(const Site& site);
void cluster_wait(const Site& site);
void grid_barrier(const Site& site);

// warp collectives
void warp_barrier(unsigned mask, const Site& site);
uint64_t shuffle(unsigned mask, uint64_t value, int source, const Site& site);
unsigned ballot(unsigned mask, int predicate, const Site& site);

// memory
void vector_load(void* to, const void* from, int bytes, const Site& site);
void vector_store(void* to, const void* from, int bytes, const Site& site);
void cp_async(void* shared, const void* global, int bytes, int source_bytes, const Site& site);
void cp_async_commit();
void cp_async_wait(int groups);
uint64_t load_acquire(const void* p, int bytes, const Site& site);
uint64_t load_relaxed(const void* p, int bytes, const Site& site);
void store_release(void* p, uint64_t value, int bytes, const Site& site);
void store_relaxed(void* p, uint64_t value, int bytes, const Site& site);
uint32_t add_release(uint32_t* p, uint32_t value, const Site& site);
void atomic_update(void* p, int bytes, void (*update)(void* p, const void* operand, void* old), const void* operand, void* old,
                   const Site& site);

// matrices
void ldmatrix(uint32_t* r, const void* row, int matrices, bool transposed, const Site& site);
void stmatrix(const uint32_t* r, void* row, int matrices, bool transposed, const Site& site);
enum class MmaType { BFloat16, Float16, Tf32 };
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, MmaType type, const Site& site);
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const Site& site);

// mbarrier, st.async, bulk copies, TMA, wgmma
void mbarrier_init(uint64_t* barrier, unsigned count, const Site& site);
void mbarrier_arrive(uint64_t* barrier, unsigned expect_bytes, const Site& site);
void mbarrier_remote_arrive(uint64_t* barrier, unsigned rank, const Site& site);
void mbarrier_wait(uint64_t* barrier, unsigned parity, bool cluster_scope, const Site& site);
void store_async(void* shared, const void* value, int bytes, uint64_t* barrier, unsigned rank, const Site& site);
struct TensorMap {
  const void* base;
  unsigned element_bytes;
  uint64_t columns, rows, row_bytes;
  unsigned box_columns, box_rows, swizzle;
};
void tensor_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int column, int row, const Site& site);
void tensor_store_2d(const TensorMap* map, const void* shared, int column, int row, const Site& site);
void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, const Site& site);
void bulk_commit();
void bulk_wait(int groups);
void fence_proxy_async();
void wgmma(float* d, int n, const uint32_t* a, uint64_t desc_a, uint64_t desc_b, bool transpose_a, bool transpose_b, int scale_d,
           const Site& site);
void wgmma_commit();
void wgmma_wait(int groups);

}  // namespace xlstm::simt
