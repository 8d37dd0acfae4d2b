// threads.h - the CPU backend's loop over independent pieces of work.
#pragma once
#include <cstdint>
#include <functional>

namespace xlstm::cpu {
// Calls body(index) once for every index in [0, count), on at most `threads` threads; a thread takes whole indices.
// The first exception is rethrown here. A thread begins with its own share of the indices, neighbours; `longest_first`: the
// pieces are sorted, so that each is taken by whoever is free.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body, bool longest_first = false);
}  // namespace xlstm::cpu
