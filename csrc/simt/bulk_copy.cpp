// bulk_copy.cpp - copies by the asynchronous proxy: bulk copies, 2-D tensor maps (TMA) and st.async into another block.
// They land when no thread can run, unless the options say otherwise; the destination is NaN until then.
#include "simt/race_detector.h"
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {
namespace {

uint32_t swizzle(uint32_t address, unsigned bytes) {
  const uint32_t rows = bytes == 128 ? 7 : bytes == 64 ? 3 : bytes == 32 ? 1 : 0;
  return address ^ ((address >> 7 & rows) << 4);
}

void move_tile(const AsyncOperation& o) {
  const TensorMap& map = o.map;
  const bool store = o.kind == AsyncKind::TensorStore;
  const auto start = uint32_t(o.shared - o.block->dynamic_memory) + kSharedWindow;
  for (unsigned r = 0; r < map.box_rows; ++r)
    for (unsigned c = 0; c < map.box_columns; ++c) {
      const uint32_t at = swizzle(start + (r * map.box_columns + c) * map.element_bytes, map.swizzle);
      char* shared = o.block->dynamic_memory + (at - kSharedWindow);
      const int64_t row = int64_t(o.row) + r, column = int64_t(o.column) + c;
      const bool inside = row >= 0 && column >= 0 && uint64_t(row) < map.rows && uint64_t(column) < map.columns;
      char* global =
          const_cast<char*>(static_cast<const char*>(map.base)) + row * int64_t(map.row_bytes) + column * map.element_bytes;
      if (store && inside) std::memcpy(global, shared, map.element_bytes);
      if (!store && inside) std::memcpy(shared, global, map.element_bytes);
      if (!store && !inside) std::memset(shared, 0, map.element_bytes);
    }
}

void perform(const AsyncOperation& o) {
  switch (o.kind) {
    case AsyncKind::BulkLoad:
      std::memcpy(o.shared, o.global, o.bytes);
      break;
    case AsyncKind::StoreValue:
      std::memcpy(o.shared, o.value, o.bytes);
      break;
    case AsyncKind::TensorLoad:
    case AsyncKind::TensorStore:
      move_tile(o);
      break;
  }
  if (o.barrier) complete_bytes(o.barrier, o);
}

void issue_load(AsyncOperation o) {
  ++machine.counters.async_copies;
  o.issuer = self;
  o.epoch = race_async_write(o.shared, o.bytes, o.site);
  if (lands_now()) return perform(o);
  std::memset(o.shared, 0xff, o.bytes);
  machine.in_flight.push_back(o);
}

void check_shared(const AsyncOperation& o, const char* instruction, uintptr_t alignment) {
  // Words are made on failure only: the linker may choose std::string's code from a traced kernel file, accesses and all.
  const auto refuse = [&](const std::string& why) { fail(std::string(instruction) + " at " + to_string(o.site) + why); };
  if (!in_shared(o.block, o.shared, o.bytes)) refuse(": the shared memory range is out of bounds");
  if (reinterpret_cast<uintptr_t>(o.shared) % alignment)
    refuse(": the shared memory address is not a multiple of " + std::to_string(alignment));
}

AsyncOperation tensor_operation(AsyncKind kind, const TensorMap* map, const void* shared, int column, int row, const Site& site) {
  require_architecture(90, "cp.async.bulk.tensor", site);
  AsyncOperation o{};
  o.kind = kind;
  o.shared = const_cast<char*>(static_cast<const char*>(shared));
  o.block = self->block;
  o.map = *map;
  o.column = column;
  o.row = row;
  o.bytes = map->box_columns * map->box_rows * map->element_bytes;
  o.issuer = self;
  o.site = site;
  check_shared(o, "cp.async.bulk.tensor", map->swizzle == 128 ? 1024 : 128);
  return o;
}

}  // namespace

bool land_one() {
  auto& in_flight = machine.in_flight;
  if (in_flight.empty()) return false;
  const size_t i = machine.options.landing == Landing::Random ? next_random() % in_flight.size() : 0;
  const AsyncOperation operation = in_flight[i];
  in_flight.erase(in_flight.begin() + i);
  Fiber* const running = self;
  self = operation.issuer;
  perform(operation);
  self = running;
  return true;
}

void tensor_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int column, int row, const Site& site) {
  AsyncOperation o = tensor_operation(AsyncKind::TensorLoad, map, shared, column, row, site);
  o.barrier = barrier;
  issue_load(o);
}

void tensor_store_2d(const TensorMap* map, const void* shared, int column, int row, const Site& site) {
  AsyncOperation o = tensor_operation(AsyncKind::TensorStore, map, shared, column, row, site);
  ++machine.counters.async_copies;
  race_async_read(shared, o.bytes, site);
  o.group = self->bulk_group;
  self->bulk_stores.push_back(o);
}

void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* barrier, const Site& site) {
  require_architecture(90, "cp.async.bulk", site);
  if (bytes % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("cp.async.bulk at " + to_string(site) + ": size or source is not a multiple of 16");
  AsyncOperation o{};
  o.kind = AsyncKind::BulkLoad;
  o.shared = static_cast<char*>(shared);
  o.block = self->block;
  o.global = global;
  o.bytes = bytes;
  o.barrier = barrier;
  o.site = site;
  check_shared(o, "cp.async.bulk", 16);
  touch(global, bytes, kRead, site);
  issue_load(o);
}

void store_async(void* shared, const void* value, int bytes, uint64_t* barrier, unsigned rank, const Site& site) {
  require_architecture(90, "st.async", site);
  AsyncOperation o{};
  o.kind = AsyncKind::StoreValue;
  o.shared = static_cast<char*>(map_shared_rank(shared, rank));
  o.block = &machine.blocks[rank];
  std::memcpy(o.value, value, bytes);
  o.bytes = unsigned(bytes);
  o.barrier = static_cast<uint64_t*>(map_shared_rank(barrier, rank));
  o.remote = true;
  o.site = site;
  check_shared(o, "st.async", uintptr_t(bytes));
  issue_load(o);
}

void bulk_commit() { ++self->bulk_group; }

void bulk_wait(int groups) {
  auto& stores = self->bulk_stores;
  size_t done = 0;
  while (done < stores.size() && stores[done].group + uint32_t(groups) < self->bulk_group) perform(stores[done++]);
  stores.erase(stores.begin(), stores.begin() + done);
}

void fence_proxy_async() { self->fence_epoch = self->epoch = ++self->warp->epoch; }

}  // namespace xlstm::simt
