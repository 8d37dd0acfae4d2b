// threads.h - the CPU backend's loop over independent pieces of work.
#pragma once
#include <cstdint>
#include <functional>

namespace xlstm::cpu {
// Calls body(index) once for every index in [0, count), on at most `threads` threads; a thread takes whole indices.
// The first exception is rethrown here.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);
}  // namespace xlstm::cpu
