// async_copy.cpp - cp.async: the destination is NaN from the issue on, and the data arrives at the wait.
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {

void finish_copy(const CopyOperation& copy) {
  touch(copy.from, copy.source_bytes, kRead, copy.site);
  touch(copy.to, copy.bytes, kWrite | kSilent, copy.site);
  std::memcpy(copy.to, copy.from, copy.source_bytes);
  std::memset(static_cast<char*>(copy.to) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

void cp_async(void* shared, const void* global, int bytes, int source_bytes, const Site& site) {
  const auto refuse = [&](const std::string& why) { fail("cp.async at " + to_string(site) + ": " + why); };
  if (!in_shared(self->block, shared, bytes)) refuse("the destination is not in this block's shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % bytes)
    refuse("the destination is not aligned to " + std::to_string(bytes) + " bytes");
  if (source_bytes && reinterpret_cast<uintptr_t>(global) % bytes)
    refuse("the source is not aligned to " + std::to_string(bytes) + " bytes");
  if (source_bytes < 0 || source_bytes > bytes)
    refuse("source size " + std::to_string(source_bytes) + " of " + std::to_string(bytes));
  ++machine.counters.async_copies;
  const CopyOperation copy{shared, global, bytes, source_bytes, self->copy_group, site};
  if (lands_now()) return finish_copy(copy);
  touch(shared, bytes, kWrite | kSilent, site);
  std::memset(shared, 0xff, bytes);
  self->copies.push_back(copy);
}

void cp_async_commit() { ++self->copy_group; }

void cp_async_wait(int groups) {
  std::vector<CopyOperation>& copies = self->copies;
  size_t done = 0;
  while (done < copies.size() && copies[done].group + uint32_t(groups) < self->copy_group) finish_copy(copies[done++]);
  copies.erase(copies.begin(), copies.begin() + done);
}

}  // namespace xlstm::simt
